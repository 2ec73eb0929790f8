"""MAViT, a vision transformer of magnitude-aware linear attention (MALA).

Fan et al., "Rectifying Magnitude Neglect in Linear Attention", ICCV 2025, arXiv 2507.00698. Written from the formulas;
published weights load under their own keys, see [checkpoint_filter_fn].
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from visionkit.backbones.base import default_cfg
from visionkit.backbones.hybrid import PUBLISHED_TYPES, AttentionChoice, HybridBackbone, choose_attention
from visionkit.backbones.layers import ConvFFN, DepthwiseConv, LayerNorm, add_branch, linear
from visionkit.backbones.published import complete, create, renamed, unwrap
from visionkit.ops.rotary import Rotary

ARCHS = {
    "tiny": dict(
        dims=(64, 128, 256, 512), depths=(2, 2, 6, 2), num_heads=(1, 2, 4, 8), drop_path_rate=0.1, projection=2048
    ),
    "small": dict(
        dims=(64, 128, 320, 512), depths=(3, 5, 9, 3), num_heads=(1, 2, 5, 8), drop_path_rate=0.15, projection=2048
    ),
    "base": dict(
        dims=(96, 192, 384, 512),
        depths=(4, 6, 12, 6),
        num_heads=(1, 2, 6, 8),
        drop_path_rate=0.4,
        projection=2048,
        layer_scale=(1, 1, 1e-6, 1e-6),
    ),
    "large": dict(
        dims=(96, 192, 448, 640),
        depths=(4, 7, 19, 8),
        num_heads=(1, 2, 7, 10),
        drop_path_rate=0.55,
        projection=2560,
        layer_scale=(1e-6,) * 4,
    ),
}


class GatedAttention(nn.Module):
    """Attention with a depthwise branch on the values and a linear gate: proj((attend(q, k, v) + lepe(v)) * o).

    Args:
        dim: channels.
        num_heads: number of heads.
        attention: the attention function and its options.
    """

    adds_onto = True

    def __init__(self, dim: int, num_heads: int, attention: AttentionChoice) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkvo = nn.Linear(dim, 4 * dim)
        self.lepe = DepthwiseConv(dim, 5)
        self.core = attention.core(num_heads, dim // num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotary: Rotary, gamma: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), times gamma (C,), added onto a map."""
        q, k, v, o = linear(self.qkvo, x).chunk(4, dim=-1)
        heads = [self.split(each) for each in (q, k, v)]
        gating = {}
        if self.core.fuses_gate(*heads):
            gating = dict(local=self.split(self.lepe(v)), gate=self.split(o))
        out = self.core(*heads, rotary, **gating).transpose(1, 2).reshape(x.shape)
        if not gating:  # only now the branch: its map, kept during attention, would cost a CPU fresh pages
            out = (out + self.lepe(v)) * o
        return linear(self.proj, out, gamma, onto)

    def split(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, heads, H * W, C / heads), without a copy."""
        return x.flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Position by depthwise convolution, attention, feed-forward part; all residual."""

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
        self.pos = DepthwiseConv(dim, 3, residual=True)
        self.norm1 = LayerNorm(dim, eps=1e-6)
        self.attn = GatedAttention(dim, num_heads, attention)
        self.norm2 = LayerNorm(dim, eps=1e-6)
        self.ffn = ConvFFN(dim, int(mlp_ratio * dim))
        self.gamma_1 = nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.gamma_2 = nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.pos(x)
        x = add_branch(x, self.drop_path, self.attn, self.norm1(x), rotary, self.gamma_1)
        return add_branch(x, self.drop_path, self.ffn, self.norm2(x), self.gamma_2)


class MAViT(HybridBackbone):
    """MAViT.

    Args:
        dims, depths, num_heads, projection, layer_scale, drop_path_rate, mlp_ratio: see ``HybridBackbone``.
        attn_types: ``"linear"`` (MALA) or ``"softmax"`` for each stage.
        normalise_rotated: take MALA's normaliser after rotation, see [visionkit.ops.mala.mala_attention].
        attention: another attention for all stages, or one name for each; overrides ``attn_types``.
        attention_options: options of ``attention``'s function.
        **options: ``in_chans``, ``num_classes``, ``global_pool``, ``drop_rate``, ``device``, ``dtype``.
    """

    def __init__(
        self,
        dims: Sequence[int] = ARCHS["tiny"]["dims"],
        depths: Sequence[int] = ARCHS["tiny"]["depths"],
        num_heads: Sequence[int] = ARCHS["tiny"]["num_heads"],
        projection: int = 2048,
        layer_scale: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        mlp_ratio: float = 3.5,
        attn_types: Sequence[str] = PUBLISHED_TYPES,
        normalise_rotated: bool = False,
        attention: str | Sequence[str] | None = None,
        attention_options: dict | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        own = AttentionChoice("mala", dict(normalise_rotated=True) if normalise_rotated else {})
        attentions = choose_attention(
            own, attn_types, attention, attention_options, normalise_rotated=normalise_rotated
        )
        super().__init__(
            Block, dims, depths, num_heads, mlp_ratio, layer_scale, attentions, projection=projection, **options
        )


RENAMES = (
    (r"^patch_embed\.proj\.(0|3|6|9)\.", lambda m: f"stem.{int(m[1]) // 3}.conv."),
    (r"^patch_embed\.proj\.(1|4|7|10)\.", lambda m: f"stem.{int(m[1]) // 3}.norm."),
    (r"^layers\.(\d+)\.downsample\.reduction\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.conv."),
    (r"^layers\.(\d+)\.downsample\.norm\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.norm."),
    (r"^layers\.", lambda m: "stages."),
    (r"\.(norm[12])\.norm\.", r".\1."),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published weights (or our own) -> weights of ``model``.

    Raises:
        VisionKitError: they are not of this architecture.
    """
    state = unwrap(state_dict)
    if "stem.0.conv.weight" not in state:
        # rotary tables are computed
        state = {
            renamed(key, RENAMES): reshape(key, value) for key, value in state.items() if not key.endswith("RoPE.angle")
        }
    return complete(state, model, head=("proj.", "norm.", "head."))


def reshape(key: str, value: Tensor) -> Tensor:
    """1x1 convolutions become linear layers, layer scales vectors."""
    if key.endswith((".gamma_1", ".gamma_2")):
        return value.flatten()
    is_convolution = key.startswith("patch_embed") or ".reduction." in key
    return value.flatten(1) if value.dim() == 4 and value.shape[2:] == (1, 1) and not is_convolution else value


def _create(variant: str, pretrained: bool = False, **options: Any) -> MAViT:  # noqa: ANN401
    return create(MAViT, variant, pretrained, checkpoint_filter_fn, ARCHS[variant.rsplit("_", 1)[1]], options)


default_cfgs = generate_default_cfgs(
    {f"mavit_{arch}.untrained": default_cfg(pool_size=(7, 7), first_conv="stem.0.conv") for arch in ARCHS}
)


@register_model
def mavit_tiny(pretrained: bool = False, **kwargs: Any) -> MAViT:  # noqa: ANN401
    """16.4 M parameters; published top-1 on ImageNet-1k 82.9."""
    return _create("mavit_tiny", pretrained, **kwargs)


@register_model
def mavit_small(pretrained: bool = False, **kwargs: Any) -> MAViT:  # noqa: ANN401
    """27.1 M parameters; published top-1 84.7."""
    return _create("mavit_small", pretrained, **kwargs)


@register_model
def mavit_base(pretrained: bool = False, **kwargs: Any) -> MAViT:  # noqa: ANN401
    """49.8 M parameters; published top-1 85.7."""
    return _create("mavit_base", pretrained, **kwargs)


@register_model
def mavit_large(pretrained: bool = False, **kwargs: Any) -> MAViT:  # noqa: ANN401
    """97.8 M parameters; published top-1 86.0."""
    return _create("mavit_large", pretrained, **kwargs)
