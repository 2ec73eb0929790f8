"""NaLaFormer, a vision transformer of norm-aware linear attention.

"Norm x Direction: Restoring the Missing Query Norm in Vision Linear Attention", arXiv 2506.21137. Written from the
formulas; released weights load under their own keys, see [checkpoint_filter_fn].
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit.backbones.base import default_cfg
from visionkit.backbones.hybrid import PUBLISHED_TYPES, AttentionChoice, HybridBackbone, choose_attention
from visionkit.backbones.layers import ConvFFN, DepthwiseConv, LayerNorm, add_branch, linear
from visionkit.backbones.mavit import checkpoint_filter_fn  # released weights are named like MAViT's
from visionkit.backbones.published import create
from visionkit.ops.nala import check_feature_map
from visionkit.ops.rotary import Rotary

PROJECTION = 1024
ARCHS = {
    "xtiny": dict(dims=(32, 64, 128, 384), depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 12), drop_path_rate=0.1),
    "tiny": dict(
        dims=(64, 128, 256, 512), depths=(2, 2, 6, 2), num_heads=(1, 2, 4, 8), drop_path_rate=0.1, mlp_ratio=4.0
    ),
    "small": dict(dims=(64, 128, 320, 512), depths=(3, 5, 9, 3), num_heads=(1, 2, 5, 8), drop_path_rate=0.15),
    "base": dict(
        dims=(96, 192, 384, 512),
        depths=(4, 6, 12, 6),
        num_heads=(1, 2, 6, 8),
        drop_path_rate=0.4,
        mlp_ratio=4.0,
        layer_scale=(1, 1, 1e-6, 1e-6),
    ),
    "large": dict(
        dims=(96, 192, 448, 640),
        depths=(4, 7, 19, 8),
        num_heads=(1, 2, 7, 10),
        drop_path_rate=0.55,
        layer_scale=(1e-6,) * 4,
    ),
}


class GatedAttention(nn.Module):
    """Attention with a depthwise branch on the values, a norm and a gate: proj(norm(attend + lepe(v)) * silu(g)).

    Args:
        dim: channels.
        num_heads: number of heads.
        attention: the attention function and its options.
    """

    adds_onto = True

    def __init__(self, dim: int, num_heads: int, attention: AttentionChoice) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkvg = nn.Linear(dim, 4 * dim)
        self.lepe = DepthwiseConv(dim, 5)
        self.core = attention.core(num_heads, dim // num_heads)
        self.ln = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotary: Rotary, gamma: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), times gamma (C,), added onto a map."""
        q, k, v, g = linear(self.qkvg, x).chunk(4, dim=-1)
        heads = (each.flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in (q, k, v))
        attended = self.core(*heads, rotary).transpose(1, 2).reshape(x.shape)
        return linear(self.out_proj, self.ln(attended + self.lepe(v)) * F.silu(g), gamma, onto)


class Block(nn.Module):
    """Position by depthwise convolution before attention and before the feed-forward part; all residual."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        attention: AttentionChoice,
        drop_path: float = 0.0,
        layer_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.cpe1 = DepthwiseConv(dim, 3, residual=True)
        self.norm1 = LayerNorm(dim, eps=1e-6)
        self.attn = GatedAttention(dim, num_heads, attention)
        self.cpe2 = DepthwiseConv(dim, 3, residual=True)
        self.norm2 = LayerNorm(dim, eps=1e-6)
        self.ffn = ConvFFN(dim, int(mlp_ratio * dim))
        self.gamma_1 = nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.gamma_2 = nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.cpe1(x)
        x = add_branch(x, self.drop_path, self.attn, self.norm1(x), rotary, self.gamma_1)
        x = self.cpe2(x)
        return add_branch(x, self.drop_path, self.ffn, self.norm2(x), self.gamma_2)


class NaLaFormer(HybridBackbone):
    """NaLaFormer.

    Args:
        dims, depths, num_heads, layer_scale, drop_path_rate, mlp_ratio: see ``HybridBackbone``.
        attn_types: ``"linear"`` (norm-aware) or ``"softmax"`` for each stage.
        feature_map: ``"signs"``, as released, or ``"cosine"``, the paper's, see [visionkit.ops.nala.nala_attention].
        attention: another attention for all stages, or one name for each; overrides ``attn_types``.
        attention_options: options of ``attention``'s function.
        **options: ``in_chans``, ``num_classes``, ``global_pool``, ``drop_rate``, ``device``, ``dtype``.
    """

    def __init__(
        self,
        dims: Sequence[int] = ARCHS["tiny"]["dims"],
        depths: Sequence[int] = ARCHS["tiny"]["depths"],
        num_heads: Sequence[int] = ARCHS["tiny"]["num_heads"],
        layer_scale: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        mlp_ratio: float = 3.5,
        attn_types: Sequence[str] = PUBLISHED_TYPES,
        feature_map: str = "signs",
        attention: str | Sequence[str] | None = None,
        attention_options: dict | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        check_feature_map(feature_map)
        own = AttentionChoice("nala", dict(feature_map=feature_map))
        attentions = choose_attention(own, attn_types, attention, attention_options, feature_map=feature_map != "signs")
        super().__init__(
            Block, dims, depths, num_heads, mlp_ratio, layer_scale, attentions, projection=PROJECTION, **options
        )


def _create(variant: str, pretrained: bool = False, **options: Any) -> NaLaFormer:  # noqa: ANN401
    return create(NaLaFormer, variant, pretrained, checkpoint_filter_fn, ARCHS[variant.rsplit("_", 1)[1]], options)


default_cfgs = generate_default_cfgs(
    {f"nalaformer_{arch}.untrained": default_cfg(pool_size=(7, 7), first_conv="stem.0.conv") for arch in ARCHS}
)


@register_model
def nalaformer_xtiny(pretrained: bool = False, **kwargs: Any) -> NaLaFormer:  # noqa: ANN401
    """6.1 M parameters; published top-1 on ImageNet-1k 79.1; the paper says 8 M."""
    return _create("nalaformer_xtiny", pretrained, **kwargs)


@register_model
def nalaformer_tiny(pretrained: bool = False, **kwargs: Any) -> NaLaFormer:  # noqa: ANN401
    """15.9 M parameters; published top-1 on ImageNet-1k 82.6."""
    return _create("nalaformer_tiny", pretrained, **kwargs)


@register_model
def nalaformer_small(pretrained: bool = False, **kwargs: Any) -> NaLaFormer:  # noqa: ANN401
    """25.7 M parameters; published top-1 on ImageNet-1k 84.3."""
    return _create("nalaformer_small", pretrained, **kwargs)


@register_model
def nalaformer_base(pretrained: bool = False, **kwargs: Any) -> NaLaFormer:  # noqa: ANN401
    """52.0 M parameters; published top-1 on ImageNet-1k 85.2."""
    return _create("nalaformer_base", pretrained, **kwargs)


@register_model
def nalaformer_large(pretrained: bool = False, **kwargs: Any) -> NaLaFormer:  # noqa: ANN401
    """95.4 M parameters; published top-1 on ImageNet-1k 85.7."""
    return _create("nalaformer_large", pretrained, **kwargs)
