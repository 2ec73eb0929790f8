"""The macro-architecture that MAViT and NaLaFormer share: convolutional stem and downsampling, linear attention in the
early stages and softmax in the late ones, rotary positions, a projected head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit.backbones.attention import AttentionCore
from visionkit.backbones.base import HierarchicalBackbone, Stage, check_ends, check_stages, init_weights, pooled
from visionkit.backbones.layers import (
    ConvNorm,
    RotaryTable,
    channels_first,
    channels_last,
    fold_batch_norm,
    linear,
    may_fold,
    suits_onednn,
)
from visionkit.checks import check_above, check_counts
from visionkit.errors import VisionKitError

PUBLISHED_TYPES = ("linear", "linear", "softmax", "softmax")


@dataclass(frozen=True)
class AttentionChoice:
    """Which attention a stage uses, by its name, and the options of its function."""

    name: str
    options: dict = field(default_factory=dict)

    def core(self, num_heads: int, head_dim: int) -> AttentionCore:
        """A fresh core."""
        return AttentionCore(self.name, num_heads, head_dim, **self.options)


def choose_attention(
    own: AttentionChoice,
    attn_types: Sequence[str],
    attention: str | Sequence[str] | None,
    attention_options: dict | None,
    **switches: bool,
) -> list[AttentionChoice]:
    """One choice a stage.

    Args:
        own: the family's linear attention.
        attn_types: four of ``"linear"`` (the family's own) and ``"softmax"``.
        attention: a name, or four, of [visionkit.backbones.attention.attention_names]; overrides ``attn_types``.
        attention_options: options of ``attention``'s function.
        **switches: the model's options of ``own``, and whether they are given.

    Raises:
        VisionKitError: not four, an unknown type, or options of nothing.
    """
    check_has_attention(attention, attention_options)
    if attention is not None:
        check_unused(attention, **switches)
        names = names_of_stages(attention)
        choices = [AttentionChoice(name, attention_options or {}) for name in names]
    else:
        known = {"linear": own, "softmax": AttentionChoice("softmax")}
        if wrong := [each for each in attn_types if each not in known]:
            raise VisionKitError(
                f"attn_types: {wrong[0]!r} is neither 'linear' nor 'softmax'; other kinds are given as attention="
            )
        choices = [known[each] for each in attn_types]
    if len(choices) != 4:
        raise VisionKitError(f"attn_types: expected a name for each of the four stages, got {len(choices)}")
    return choices


def names_of_stages(attention: str | Sequence[str]) -> list[str]:
    """One name a stage.

    Raises:
        VisionKitError: neither a name nor four.
    """
    if isinstance(attention, str):
        return [attention] * 4
    if not isinstance(attention, Sequence):
        raise VisionKitError(f"attention={attention!r}: expected a name, or one for each of the four stages")
    if len(attention) != 4:
        raise VisionKitError(f"attention: expected a name for each of the four stages, got {len(attention)}")
    return list(attention)


def check_has_attention(attention: str | Sequence[str] | None, attention_options: dict | None) -> None:
    """Raises VisionKitError for options of an attention that is not named."""
    if attention is None and attention_options:
        raise VisionKitError("attention_options: are of attention=, which is not given; name one, or leave them out")


def check_unused(attention: str | Sequence[str], **switches: bool) -> None:
    """Raises VisionKitError for a given option of the family's own attention, which another replaces."""
    for option, given in switches.items():
        if given:
            raise VisionKitError(
                f"{option}: belongs to the attention that attention={attention!r} replaces; leave it out, or give "
                "what the other takes as attention_options"
            )


class ConvStem(nn.Sequential):
    """Four 3x3 convolutions, the first and the last with stride 2: an image (B, H, W, C) to a quarter of its size."""

    def __init__(self, in_chans: int, dim: int) -> None:
        half = dim // 2
        super().__init__(
            ConvNorm(in_chans, half, 2, "gelu"),
            ConvNorm(half, half, 1, "gelu"),
            ConvNorm(half, half, 1, "gelu"),
            ConvNorm(half, dim, 2),
        )


class HybridBackbone(HierarchicalBackbone):
    """Stem, four stages and a head.

    Args:
        block: ``(dim, num_heads, mlp_ratio, attention, drop_path, layer_scale)`` -> a block, called with a map
            (B, H, W, C) and its rotary table.
        dims, depths, num_heads: channels, number of blocks and number of heads of each of the four stages.
        mlp_ratio: hidden channels of a block's feed-forward part, as a multiple of its channels.
        layer_scale: start of the factors on every branch, one a stage.
        attentions: one choice a stage.
        projection: channels between the last stage and the classifier.
        in_chans: channels of the image.
        num_classes: 0 for none.
        global_pool: ``"avg"``, or ``""`` for none.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        device, dtype: device and type of the parameters.

    Raises:
        VisionKitError: not four values a stage, heads that do not fit the channels, or an unknown ``global_pool``.
    """

    def __init__(
        self,
        block: Callable[..., nn.Module],
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratio: float,
        layer_scale: Sequence[float],
        attentions: Sequence[AttentionChoice],
        projection: int,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_stages(dims, depths, num_heads, layer_scale)
        check_ends(in_chans, num_classes, drop_rate, drop_path_rate)
        check_counts("", 1, projection=projection)
        check_above("", 0, mlp_ratio=mlp_ratio)
        if odd := [dim // heads for dim, heads in zip(dims, num_heads) if dim // heads % 4]:
            raise VisionKitError(f"num_heads, dims: heads of {odd[0]} channels; rotary positions need a multiple of 4")
        super().__init__(dims, num_classes, projection, global_pool=global_pool)
        self.drop_rate = drop_rate
        self.stem = ConvStem(in_chans, dims[0])
        rates = drop_path_rates(drop_path_rate, depths)
        stages = []
        for i, dim in enumerate(dims):
            make = partial(block, dim, num_heads[i], mlp_ratio, attentions[i], layer_scale=layer_scale[i])
            downsample = ConvNorm(dims[i - 1], dim, 2) if i else nn.Identity()
            rotary = RotaryTable(dim // num_heads[i])
            stages.append(Stage(downsample, [make(drop_path=rate) for rate in rates[i]], rotary))
        self.stages = nn.ModuleList(stages)
        self.proj = nn.Linear(dims[-1], projection)
        self.norm = nn.BatchNorm2d(projection)
        self.head = nn.Linear(projection, num_classes) if num_classes else nn.Identity()
        self.apply(init_weights)
        self.to(device=device, dtype=dtype)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map (B, C, H, W) -> logits (B, num_classes), or what comes before the classifier."""
        x = channels_last(x)
        if not isinstance(self.proj, nn.Identity):
            x = F.silu(self.project(x))
        x = F.dropout(pooled(x, self.global_pool), self.drop_rate, self.training)
        return x if pre_logits else self.classify(x)

    def project(self, x: Tensor) -> Tensor:
        """Projection and norm of a map (B, H, W, C)."""
        # of few cells a norm costs less than folding it
        if suits_onednn(self.proj, x) or not may_fold(self.proj, self.norm):
            return channels_last(self.norm(channels_first(linear(self.proj, x))))
        return F.linear(x, *fold_batch_norm(self.proj.weight, self.proj.bias, self.norm))

    def classify(self, x: Tensor) -> Tensor:
        """Logits of a vector, or of every cell of a map (B, C, H, W)."""
        return self.head(x) if x.dim() == 2 else channels_first(self.head(channels_last(x)))

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last chosen one, and the head with its projection."""
        wanted = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self.proj, self.norm = nn.Identity(), nn.Identity()
        return wanted


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that grow linearly over all blocks, from 0 to ``last``; a list a stage."""
    total, rates, start = max(sum(depths) - 1, 1), [], 0
    for depth in depths:
        rates.append([last * (start + i) / total for i in range(depth)])
        start += depth
    return rates
