"""Student and teacher of CORE-ReID: backbone, global neck, two local branches and classifier."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.checks import check_counts, given
from visionkit.errors import VisionKitError
from visionkit.registry import MODELS
from visionkit.reid.fusion import frozen_bias_norm, halves, pool


class Encoded(NamedTuple):
    """What an encoder makes of images: the map (B, C, H, W), features (B, C) of its parts, logits (B, K)."""

    feature_map: Tensor
    features: tuple[Tensor, ...]
    logits: Tensor


class Classifier(nn.Module):
    """A bias-free linear classifier with room for ``capacity`` classes, of which the first ``active`` are in use.

    The number of clusters may change every epoch; the parameter's shape must not, or optimiser states, checkpoints
    and distributed buckets would no longer fit.
    """

    def __init__(self, channels: int, capacity: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(capacity, channels))
        nn.init.normal_(self.weight, std=0.001)
        self.active = capacity

    def forward(self, features: Tensor) -> Tensor:
        """(B, C) -> logits (B, active)."""
        return F.linear(features, self.weight[: self.active])

    @torch.no_grad()
    def reset(self, num_classes: int, centroids: Tensor | np.ndarray | None = None) -> None:
        """Start anew for ``num_classes`` classes, from L2-normalised centroids (num_classes, C) where given.

        Raises:
            VisionKitError: more classes than there is room for, or centroids of another shape.
        """
        capacity, channels = self.weight.shape
        if not 1 <= num_classes <= capacity:
            raise VisionKitError(
                f"num_classes={capacity}: the classifier has no room for {num_classes} clusters; raise it to that"
            )
        self.active = num_classes
        if centroids is None:
            nn.init.normal_(self.weight, std=0.001)
            return
        centroids = torch.as_tensor(centroids).to(self.weight)
        if centroids.shape != (num_classes, channels):
            raise VisionKitError(
                f"centroids of shape {tuple(centroids.shape)}: expected {(num_classes, channels)}, a row for each class"
            )
        self.weight[:num_classes] = F.normalize(centroids)


class LocalBranch(nn.Module):
    """l = BN(W [GAP, GMP] + b) of one half of the map, W from 2C to C channels (the "adaptive FC")."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * channels, channels)
        nn.init.kaiming_normal_(self.fc.weight, mode="fan_out")
        nn.init.zeros_(self.fc.bias)
        self.bn = frozen_bias_norm(channels)

    def forward(self, half: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        pooled = pool(half)
        return self.bn(self.fc(torch.cat([pooled.mean, pooled.max], dim=1)))


class ReIDEncoder(nn.Module):
    """Student or teacher: backbone, global neck, two local branches, classifier.

    Args:
        backbone: MODELS config of a backbone, or a module with ``num_features``.
        num_classes: largest number of classes of the classifier.
        local: add the two local branches.
        bn_group_size: number of images that batch norms see together in training; None for the whole batch. A view is
            forwarded in groups of at least this size, as if each were on a device of its own.
    """

    def __init__(
        self, backbone: Mapping | nn.Module, num_classes: int, local: bool = True, bn_group_size: int | None = None
    ) -> None:
        super().__init__()
        check_counts("model", 2, **given(bn_group_size=bn_group_size))  # of one image a norm learns nothing
        self.backbone = build_backbone(backbone)
        self.num_features: int = self.backbone.num_features
        self.bn_global = frozen_bias_norm(self.num_features)
        self.local_top = LocalBranch(self.num_features) if local else None
        self.local_bottom = LocalBranch(self.num_features) if local else None
        self.classifier = Classifier(self.num_features, num_classes)
        self.bn_group_size = bn_group_size

    def forward(self, image: Tensor) -> Encoded:
        """Images (B, 3, H, W) -> map, features (global, top, bottom; global alone if not local) and logits."""
        encoded = [self._encode(group) for group in norm_groups(image, self.bn_group_size if self.training else None)]
        if len(encoded) == 1:
            return encoded[0]
        maps, features, logits = zip(*encoded)
        return Encoded(torch.cat(maps), tuple(torch.cat(part) for part in zip(*features)), torch.cat(logits))

    def _encode(self, image: Tensor) -> Encoded:
        feature_map = last_map(self.backbone(image))
        features = (self.bn_global(pool(feature_map).total),)
        if self.local_top is not None:
            top, bottom = halves(feature_map)
            features += (self.local_top(top), self.local_bottom(bottom))
        return Encoded(feature_map, features, self.classifier(features[0]))


def build_backbone(backbone: Mapping | nn.Module) -> nn.Module:
    """Build a backbone from its config; a module is taken as it is. Raises VisionKitError without ``num_features``."""
    net = backbone if isinstance(backbone, nn.Module) else MODELS.build(dict(backbone))
    if not isinstance(getattr(net, "num_features", None), int):
        raise VisionKitError(
            f"backbone: {type(net).__name__} does not tell num_features, the channels of its last map; use "
            "visionkit.ResNet or visionkit.TimmFeatures"
        )
    return net.to(memory_format=torch.channels_last) if suits_channels_last(net) else net


def suits_channels_last(net: nn.Module) -> bool:
    """Whether a network may run channels-last, which is up to twice as fast.

    With convolutions of 4 channels the CPU kernels of torch 2.15 write past their buffers in the backward pass.
    """
    sizes = [size for conv in net.modules() if isinstance(conv, nn.Conv2d) for size in conv.weight.shape[:2]]
    return all(size % 8 == 0 or size in (1, 3) for size in sizes)


def norm_groups(image: Tensor, size: int | None) -> tuple[Tensor, ...]:
    """Split (B, 3, H, W) into nearly equal groups of at least ``size`` images; one group for None."""
    return image.tensor_split(max(len(image) // size, 1)) if size else (image,)


def last_map(output: Tensor | Sequence[Tensor]) -> Tensor:
    """The last map (B, C, H, W) of what a backbone returns: one map or several. Raises VisionKitError for no map."""
    feature_map = output if isinstance(output, Tensor) else output[-1]
    if feature_map.dim() != 4:
        raise VisionKitError(f"backbone: expected a map (B, C, H, W), got shape {tuple(feature_map.shape)}")
    return feature_map
