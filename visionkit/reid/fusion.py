"""Ensemble Fusion: the teacher's global map, weighted per channel by the student's top and bottom halves.

CORE-ReID (arXiv 2508.03064) and its Ensemble Fusion++ (CORE-ReID V2, arXiv 2508.04036). Everything after the maps is
linear in space, so the module works on pooled vectors: with a gate w per channel, GAP(x * w) = GAP(x) * w, and
GMP(x * w) = GMP(x) * w where w >= 0, else -GMP(-x) * w. No weighted map is ever made.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from visionkit.errors import VisionKitError

PARTS = ("global", "top", "bottom")


class Pooled(NamedTuple):
    """Mean, largest and smallest value of every channel of a map; each (B, C)."""

    mean: Tensor
    max: Tensor
    min: Tensor

    def gated(self, gate: Tensor) -> "Pooled":
        """What pooling the map times ``gate`` (B, C) would give."""
        high = torch.where(gate >= 0, self.max, self.min)
        low = torch.where(gate >= 0, self.min, self.max)
        return Pooled(self.mean * gate, high * gate, low * gate)

    @property
    def total(self) -> Tensor:
        """GAP + GMP, (B, C)."""
        return self.mean + self.max


def pool(feature_map: Tensor) -> Pooled:
    """(B, C, H, W) -> its pooled vectors (B, C)."""
    flat = feature_map.flatten(2)
    return Pooled(flat.mean(2), flat.amax(2), flat.amin(2))


def halves(feature_map: Tensor) -> tuple[Tensor, Tensor]:
    """Split (B, C, H, W) at H // 2 into top and bottom. Raises VisionKitError for H = 1."""
    height = feature_map.shape[2]
    if height < 2:
        raise VisionKitError("the feature map is 1 high and has no halves; use taller images or local=False")
    return feature_map[:, :, : height // 2], feature_map[:, :, height // 2 :]


def frozen_bias_norm(channels: int) -> nn.BatchNorm1d:
    """BatchNorm1d whose bias stays 0 (the BNNeck of Luo et al., arXiv 1903.07071)."""
    norm = nn.BatchNorm1d(channels)
    norm.bias.requires_grad_(False)
    return norm


def bottleneck_mlp(channels: int, reduction: int = 4, hidden: int = 5) -> nn.Sequential:
    """The shared MLP: an odd number of hidden layers that shrink by ``reduction`` to the middle and expand again.

    Linear without bias, ReLU between: 2048-512-128-32-128-512-2048 by default.

    Raises:
        VisionKitError: ``hidden`` is not odd.
    """
    if hidden < 1 or hidden % 2 == 0:
        raise VisionKitError(f"hidden={hidden}: expected an odd number of hidden layers, such as 5")
    depths = [min(i, hidden + 1 - i) for i in range(hidden + 2)]
    widths = [max(1, channels // reduction**depth) for depth in depths]
    layers: list[nn.Module] = []
    for i, (width, following) in enumerate(zip(widths, widths[1:])):
        layers += [nn.ReLU()] * (i > 0) + [nn.Linear(width, following, bias=False)]
    return nn.Sequential(*layers)


class SECAB(nn.Module):
    """Simplified channel attention: sigmoid(M(GMP) + M(GAP)), the gate alone."""

    def __init__(self, channels: int, reduction: int = 4, hidden: int = 5) -> None:
        super().__init__()
        self.mlp = bottleneck_mlp(channels, reduction, hidden)

    def forward(self, pooled: Pooled) -> Tensor:
        """Pooled vectors of a map -> gate (B, C) in (0, 1)."""
        return torch.sigmoid(self.mlp(pooled.max) + self.mlp(pooled.mean))


class ECAB(SECAB):
    """Channel attention that returns gate * (GMP + GAP)."""

    def forward(self, pooled: Pooled) -> Tensor:
        """Pooled vectors of a map -> channel weights psi (B, C)."""
        return super().forward(pooled) * pooled.total


class Ungated(nn.Module):
    """What stands in ECAB's place without it: psi = GMP + GAP, or the released code's GMP * (GMP + GAP)."""

    def __init__(self, by_max: bool) -> None:
        super().__init__()
        self.by_max = by_max

    def forward(self, pooled: Pooled) -> Tensor:
        """Pooled vectors of a map -> channel weights psi (B, C)."""
        return pooled.max * pooled.total if self.by_max else pooled.total


class EnsembleFusion(nn.Module):
    """Fused features theta_global, theta_top, theta_bottom of a student's and a teacher's map.

    theta_p = BN_p(GAP + GMP of the teacher's map times psi_p), psi_p from the student's half p; theta_global without
    psi. With SECAB the teacher's map is first weighted by its own gate.

    Args:
        channels: C of both maps.
        ecab: True; False: no gate (psi = GMP + GAP); ``"released"``: psi = GMP * (GMP + GAP), which is what the
            released code's ablation without ECAB computes.
        secab: weight the teacher's map by SECAB (V2).
        local: fuse the local features too; with False only theta_global.
    """

    def __init__(self, channels: int, ecab: bool | str = True, secab: bool = False, local: bool = True) -> None:
        super().__init__()
        if ecab not in (True, False, "released"):
            raise VisionKitError(f"ecab={ecab!r}: expected True, False or 'released'")
        make = (lambda: ECAB(channels)) if ecab is True else (lambda: Ungated(by_max=ecab == "released"))
        self.secab = SECAB(channels) if secab else None
        self.bn_global = frozen_bias_norm(channels)
        if local:
            self.ecab_top, self.ecab_bottom = make(), make()
            self.bn_top, self.bn_bottom = frozen_bias_norm(channels), frozen_bias_norm(channels)
        self.local = local

    def channel_weights(self, student_map: Tensor) -> tuple[Tensor, Tensor]:
        """psi_top and psi_bottom (B, C) of the student's map (B, C, H, W)."""
        top, bottom = halves(student_map)
        return self.ecab_top(pool(top)), self.ecab_bottom(pool(bottom))

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> tuple[Tensor, ...]:
        """Two maps (B, C, H, W) -> (theta_global, theta_top, theta_bottom), each (B, C); only the first if not local.

        Gradients flow into both maps; detach what must not learn.
        """
        teacher = pool(teacher_map)
        if self.secab is not None:
            teacher = teacher.gated(self.secab(teacher))
        theta_global = self.bn_global(teacher.total)
        if not self.local:
            return (theta_global,)
        psi_top, psi_bottom = self.channel_weights(student_map)
        return (
            theta_global,
            self.bn_top(teacher.gated(psi_top).total),
            self.bn_bottom(teacher.gated(psi_bottom).total),
        )
