"""A mixture of experts with enforced routing: one embedder that serves several data sets.

The trunk is shared; each data set ("domain") has an expert of its own, and in training every image goes to the expert
of its data set. A router learns to tell the data sets apart, for images of which it is not known.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.errors import VisionKitError
from visionkit.reid.fusion import frozen_bias_norm


class Routed(NamedTuple):
    """features (B, D) after the expert; router logits (B, domains); chosen domain (B,)."""

    features: Tensor
    logits: Tensor
    domain: Tensor


class Expert(nn.Module):
    """x + up(gelu(down(x))), then a batch norm without a shift (BNNeck): (B, D) -> (B, D)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.neck = frozen_bias_norm(dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D). A single training image passes the norm by its running statistics."""
        x = x + self.up(F.gelu(self.down(x)))
        if self.training and len(x) == 1:
            return F.batch_norm(x, self.neck.running_mean, self.neck.running_var, self.neck.weight, self.neck.bias)
        return self.neck(x)


class DomainExperts(nn.Module):
    """One expert for each data set behind a shared trunk.

    Args:
        dim: features of the trunk.
        domains: number of data sets.
        hidden: width of an expert's bottleneck.
    """

    def __init__(self, dim: int, domains: int, hidden: int = 64) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Expert(dim, hidden) for _ in range(domains))
        self.router = nn.Linear(dim, domains)

    def forward(self, features: Tensor, domain: Tensor | None = None) -> Routed:
        """Sends each row to its expert.

        Args:
            features: (B, D) of the trunk.
            domain: (B,) number of each row's data set (routing enforced); None to let the router choose.

        Raises:
            VisionKitError: training without ``domain``, or a number of no expert.
        """
        # the router reads the trunk but does not shape it: that would keep the data sets apart in the shared part
        logits = self.router(features.detach())
        if domain is None:
            if self.training:
                raise VisionKitError("domain=None: training needs the data set of every image, to enforce its route")
            domain = logits.argmax(-1)
        elif domain.numel() and not 0 <= int(domain.min()) <= int(domain.max()) < len(self.experts):
            raise VisionKitError(f"domain: expected numbers from 0 to {len(self.experts) - 1}, one for each data set")
        out = torch.zeros_like(features)
        for number, expert in enumerate(self.experts):
            rows = (domain == number).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, expert(features[rows]).to(out.dtype))
        return Routed(out, logits, domain)


def routing_loss(routed: Routed) -> Tensor:
    """Cross-entropy of the router's logits (B, domains) against the enforced route (B,), a scalar."""
    return F.cross_entropy(routed.logits, routed.domain)
