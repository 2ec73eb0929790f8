"""SOFT and SOFT++, vision transformers of softmax-free Gaussian attention.

Lu et al., "SOFT: Softmax-free Transformer with Linear Complexity", NeurIPS 2021; "Softmax-free Linear Transformers",
IJCV 2024, arXiv 2207.03341 (SOFT++: ``soft_norm_*``). Written from the formulas; published weights load under their own
keys, see [checkpoint_filter_fn].
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit.backbones.attention import AttentionCore
from visionkit.backbones.base import (
    HierarchicalBackbone,
    Stage,
    check_ends,
    check_stages,
    default_cfg,
    init_weights,
)
from visionkit.backbones.hybrid import check_has_attention, check_unused, drop_path_rates, names_of_stages
from visionkit.backbones.layers import (
    ConvNorm,
    LayerNorm,
    add_branch,
    channels_first,
    channels_last,
    linear,
    linear_gelu,
)
from visionkit.backbones.published import complete, create, renamed, unwrap
from visionkit.checks import check_choice, check_counts, given
from visionkit.errors import VisionKitError
from visionkit.ops.gaussian import NEWTON_STEPS, check_inverse, gaussian_attention
from visionkit.ops.precision import without_autocast

# a stage each; the fourth only where that is Gaussian
RATIOS = (8, 4, 2, 1)  # height and width of the patch that becomes a landmark
LOCAL_SIZES = (9, 5, 3, 3)  # of the local branch's kernel
GRIDS = (56, 28, 14, 7)  # of the learned positions: those of an image of 224 pixels
ARCHS = {
    "tiny": dict(depths=(1, 2, 3, 2), dims=(64, 128, 320, 512), num_heads=(2, 4, 10, 16)),
    "small": dict(depths=(1, 3, 7, 4), dims=(64, 128, 320, 512), num_heads=(2, 4, 10, 16)),
    "medium": dict(depths=(1, 3, 29, 5), dims=(64, 128, 288, 512), num_heads=(2, 4, 9, 16)),
    "large": dict(depths=(1, 3, 40, 5), dims=(64, 128, 320, 512), num_heads=(2, 4, 10, 16)),
    "huge": dict(depths=(1, 5, 49, 5), dims=(64, 128, 352, 512), num_heads=(2, 4, 11, 16)),
}
RELEASED_DEPTHS = {"small": (1, 3, 20, 4)}  # where they are not the paper's


class Landmarks(nn.Module):
    """A few tokens that stand for all: from maps (B, heads, H * W, head_dim) to (B, heads, m, head_dim).

    Args:
        head_dim: channels of a head.
        ratio: height and width of the patch that becomes one landmark.
        kind: ``"conv"``: a strided convolution, layer norm, GELU, as released; ``"pool"``: means, as in the paper.
        max_landmarks: more are averaged down to at most so many, None for no limit.
    """

    def __init__(self, head_dim: int, ratio: int, kind: str = "conv", max_landmarks: int | None = None) -> None:
        super().__init__()
        check_choice("", ("conv", "pool"), landmark=kind)
        check_counts("", 1, **given(max_landmarks=max_landmarks))
        self.ratio, self.max_landmarks = ratio, max_landmarks
        is_conv = kind == "conv"
        self.conv = nn.Conv2d(head_dim, head_dim, ratio, stride=ratio, bias=False) if is_conv else None
        self.norm = nn.LayerNorm(head_dim) if is_conv else None

    def forward(self, q: Tensor, grid: Sequence[int]) -> Tensor:
        maps = channels_first(q.flatten(0, 1).unflatten(1, grid))
        maps = F.avg_pool2d(maps, self.ratio) if self.conv is None else self.conv(maps)
        if self.max_landmarks is not None:
            maps = average_down(maps, self.max_landmarks)
        landmarks = channels_last(maps).flatten(1, 2)
        if self.norm is not None:
            landmarks = F.gelu(self.norm(landmarks))
        return landmarks.unflatten(0, q.shape[:2])


def average_down(maps: Tensor, most: int) -> Tensor:
    """Maps (B, C, H, W) of at most so many cells, of about the same aspect."""
    height, width = maps.shape[-2:]
    if height * width <= most:
        return maps
    factor = (most / (height * width)) ** 0.5
    rows = min(max(1, int(height * factor)), most)
    return F.adaptive_avg_pool2d(maps, (rows, min(width, most // rows)))


class HeadConv(nn.Conv2d):
    """Depthwise convolution of a map (B, H, W, heads * head_dim): one k x k kernel a head, shared by its channels."""

    def __init__(self, num_heads: int, kernel_size: int) -> None:
        padding = kernel_size // 2
        super().__init__(num_heads, num_heads, kernel_size, padding=padding, groups=num_heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.repeat_interleave(x.shape[-1] // self.groups, dim=0)
        return channels_last(F.conv2d(channels_first(x), weight, padding=self.padding, groups=weight.shape[0]))


class SoftAttention(nn.Module):
    """Gaussian attention with a depthwise branch on the values; queries are the keys.

    Args:
        dim: channels.
        num_heads: number of heads.
        ratio: height and width of the patch of cells that becomes one landmark.
        local_size: kernel size of the local branch's convolution, one kernel a head.
        symmetric: compute SOFT++ instead of SOFT.
        inverse: see [visionkit.ops.gaussian.gaussian_attention].
        landmark, max_landmarks: see [Landmarks].
        attention: another attention in place of the Gaussian one, called with q for its keys.
        attention_options: options of ``attention``'s function.
        newton_steps: steps of ``"newton"``.
    """

    adds_onto = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ratio: int,
        local_size: int,
        symmetric: bool = False,
        inverse: str = "newton",
        landmark: str = "conv",
        max_landmarks: int | None = None,
        attention: str | None = None,
        attention_options: dict | None = None,
        newton_steps: int = NEWTON_STEPS,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.symmetric, self.inverse, self.newton_steps = symmetric, inverse, newton_steps
        self.q, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.core = (
            AttentionCore(attention, num_heads, self.head_dim, **(attention_options or {})) if attention else None
        )
        self.landmarks = None if attention else Landmarks(self.head_dim, ratio, landmark, max_landmarks)
        self.local = HeadConv(num_heads, local_size)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), added onto a map."""
        v = linear(self.v, x)
        if v.dtype is torch.float16 and self.core is None and not self.symmetric:
            return self.forward_wide(x, v, onto)
        attended = self.attend(x, self.split(v)).transpose(1, 2).reshape(x.shape)
        return linear(self.proj, attended + self.local(v), onto=onto)

    def forward_wide(self, x: Tensor, v: Tensor, onto: Tensor | None) -> Tensor:
        """x, v and ``onto`` (B, H, W, C) -> (B, H, W, C), in float32 from the attention on.

        Its rows sum to up to the number of tokens, which float16 cannot hold.
        """
        attended = self.attend(x, self.split(v).float()).transpose(1, 2).reshape(x.shape)
        y = in_type_of(attended + self.local(v), self.proj)
        return y if onto is None else onto + y

    def attend(self, x: Tensor, v: Tensor) -> Tensor:
        """A map (B, H, W, C) and its values (B, heads, H * W, head_dim) -> the same shape and type as the values."""
        if self.core is not None:
            q = self.split(linear(self.q, x))
            return self.core(q, q, v)
        scale = x.new_full(x.shape[-1:], self.head_dim**-0.25)
        q = self.split(linear(self.q, x, scale))
        landmarks = self.landmarks(q, x.shape[1:3])
        options = dict(scale=1.0, symmetric=self.symmetric, inverse=self.inverse, steps=self.newton_steps)
        return gaussian_attention(q.to(v.dtype), None, v, landmarks=landmarks, **options)

    def split(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, heads, H * W, head_dim)."""
        return x.flatten(1, 2).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2).contiguous()


def in_type_of(x: Tensor, layer: nn.Module) -> Tensor:
    """layer(x), with weights in the type of x and without automatic casts."""
    weights = {name: parameter.to(x.dtype) for name, parameter in layer.named_parameters()}
    with without_autocast(x):
        return torch.func.functional_call(layer, weights, x)


class SoftBlock(nn.Module):
    """Attention and feed-forward part, each followed by a norm. ``drop`` is plain dropout, as released."""

    def __init__(self, dim: int, num_heads: int, drop: float, **attention: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.attn = SoftAttention(dim, num_heads, **attention)
        self.norm1 = nn.LayerNorm(dim)
        self.ff1 = nn.Linear(dim, 4 * dim)
        self.ff2 = nn.Linear(4 * dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        y = add_branch(x, self.drop, self.attn, x)
        # wider than x after an attention that float16 cannot hold
        x = self.norm1(y) if y.dtype == x.dtype else in_type_of(y, self.norm1).to(self.norm1.weight.dtype)
        return self.norm2(add_branch(x, self.drop, self.feed_forward, x))

    def feed_forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), added onto a map."""
        return linear(self.ff2, linear_gelu(self.ff1, x, "tanh"), onto=onto)


class TokenAttention(nn.Module):
    """Attention of the last stage's tokens, softmax unless another is named."""

    adds_onto = True

    def __init__(self, dim: int, num_heads: int, attention: str, attention_options: dict | None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.core = AttentionCore(attention, num_heads, dim // num_heads, **(attention_options or {}))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C), added onto a sequence."""
        q = linear(self.q, x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = linear(self.kv, x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return linear(self.proj, self.core(q, k, v).transpose(1, 2).flatten(2), onto=onto)


class TokenBlock(nn.Module):
    """A plain transformer block: norm, attention; norm, feed-forward part; both residual."""

    def __init__(
        self, dim: int, num_heads: int, drop: float, attention: str = "softmax", attention_options: dict | None = None
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=1e-6)
        self.attn = TokenAttention(dim, num_heads, attention, attention_options)
        self.norm2 = LayerNorm(dim, eps=1e-6)
        self.mlp = nn.ModuleDict(dict(fc1=nn.Linear(dim, 4 * dim), fc2=nn.Linear(4 * dim, dim)))
        self.drop_path = DropPath(drop) if drop else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = add_branch(x, self.drop_path, self.attn, self.norm1(x))
        return add_branch(x, self.drop_path, self.feed_forward, self.norm2(x))

    def feed_forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C), added onto a sequence."""
        return linear(self.mlp.fc2, linear_gelu(self.mlp.fc1, x), onto=onto)


class PositionedStage(Stage):
    """A stage that adds learned positions to its map, resized to it."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], dim: int, grid: int, extra: int = 0) -> None:
        super().__init__(downsample, blocks)
        self.grid = grid
        self.pos_embed = nn.Parameter(torch.zeros(1, extra + grid * grid, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def enter(self, x: Tensor) -> Tensor:
        """Halve the map, but for the first stage, and add the positions: (B, H, W, C) -> (B, H', W', C')."""
        x = self.downsample(x)
        return x + self.positions(x.shape[1:3])

    def positions(self, grid: Sequence[int]) -> Tensor:
        """The table of the cells, (1, H, W, C)."""
        table = self.pos_embed[:, -(self.grid**2) :].unflatten(1, (self.grid, self.grid))
        if tuple(grid) == (self.grid, self.grid):
            return table
        return channels_last(F.interpolate(channels_first(table), size=tuple(grid), mode="bilinear"))


class TokenStage(PositionedStage):
    """The last stage: a class token before the cells', all as a sequence (B, 1 + H * W, C)."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], dim: int, grid: int) -> None:
        super().__init__(downsample, blocks, dim, grid, extra=1)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def enter(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, 1 + H / 2 * W / 2, C)."""
        cells = super().enter(x).flatten(1, 2)
        token = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)  # no number in a traced graph
        return torch.cat([token, cells], dim=1)


class SOFT(HierarchicalBackbone):
    """SOFT, or with ``symmetric`` SOFT++.

    Like timm's vision transformers ``forward_features`` gives the normalised tokens (B, 1 + N, C), class token first.

    Args:
        dims, depths, num_heads: channels, number of blocks and number of heads of each of the four stages.
        symmetric: normalise the kernel of the landmarks by its row sums (SOFT++).
        inverse: ``"newton"``, as released, or ``"solve"``, see [visionkit.ops.gaussian.gaussian_attention].
        newton_steps: steps of ``"newton"``; weights need the number that they were trained with.
        landmark: ``"conv"`` or ``"pool"``, see [Landmarks].
        max_landmarks: limit of their number, so that the cost stays linear in the image; None for none.
        last_stage: ``"softmax"``, as released, or ``"gaussian"``: the last stage is like the others, there is no class
            token, and the head takes the mean of the cells.
        attention: another attention for all stages, or one name for each.
        attention_options: options of ``attention``'s function.
        in_chans, num_classes: channels of the image, and number of classes.
        global_pool: ``"token"``, ``"avg"`` or ``""``; default ``"token"``, or ``"avg"`` without a class token.
        drop_rate: dropout before the classifier.
        drop_path_rate: dropout (in the last stage stochastic depth) of the last block; it grows linearly from 0.
        device, dtype: device and type of the parameters.

    Raises:
        VisionKitError: not four values a stage, heads that do not divide the channels, or an unknown choice.
    """

    def __init__(
        self,
        dims: Sequence[int] = ARCHS["tiny"]["dims"],
        depths: Sequence[int] = ARCHS["tiny"]["depths"],
        num_heads: Sequence[int] = ARCHS["tiny"]["num_heads"],
        symmetric: bool = False,
        inverse: str = "newton",
        newton_steps: int = NEWTON_STEPS,
        landmark: str = "conv",
        max_landmarks: int | None = None,
        last_stage: str = "softmax",
        attention: str | Sequence[str] | None = None,
        attention_options: dict | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_stages(dims, depths, num_heads)
        check_ends(in_chans, num_classes, drop_rate, drop_path_rate)
        check_inverse(inverse)
        check_counts("", 1, newton_steps=newton_steps)
        check_has_attention(attention, attention_options)
        check_choice("", ("softmax", "gaussian"), last_stage=last_stage)
        names = [None] * 4 if attention is None else names_of_stages(attention)
        if None not in names:
            check_unused(
                attention,
                inverse=inverse != "newton",
                newton_steps=newton_steps != NEWTON_STEPS,
                landmark=landmark != "conv",
                max_landmarks=max_landmarks is not None,
            )
        has_token = last_stage == "softmax"
        pools = ("token", "avg", "") if has_token else ("avg", "")
        super().__init__(dims, num_classes, dims[-1], pools, pools[0] if global_pool is None else global_pool)
        self.has_token, self.drop_rate = has_token, drop_rate
        self.stem = nn.Sequential(
            ConvNorm(in_chans, 32, 2, "relu"), ConvNorm(32, 32, 1, "relu"), ConvNorm(32, dims[0], 2, "relu")
        )
        rates = drop_path_rates(drop_path_rate, depths)
        gaussian = dict(symmetric=symmetric, inverse=inverse, newton_steps=newton_steps)
        gaussian |= dict(landmark=landmark, max_landmarks=max_landmarks)
        stages = []
        for i, dim in enumerate(dims):
            downsample = ConvNorm(dims[i - 1], dim, 2, "relu") if i else nn.Identity()
            if i == 3 and has_token:
                other = (names[i] or "softmax", attention_options if names[i] else None)
                blocks = [TokenBlock(dim, num_heads[i], rate, *other) for rate in rates[i]]
                stages.append(TokenStage(downsample, blocks, dim, GRIDS[i]))
                continue
            options = dict(gaussian, ratio=RATIOS[i], local_size=LOCAL_SIZES[i], attention=names[i])
            options["attention_options"] = attention_options
            blocks = [SoftBlock(dim, num_heads[i], rate, **options) for rate in rates[i]]
            stages.append(PositionedStage(downsample, blocks, dim, GRIDS[i]))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.apply(init_weights)
        self.to(device=device, dtype=dtype)

    def to_features(self, x: Tensor, stage: int) -> Tensor:
        """The last stage's tokens (B, 1 + N, C), or cells (B, H, W, C) as (B, N, C); of the fourth normalised."""
        x = x if stage == 3 and self.has_token else x.flatten(1, 2)
        return self.norm(x) if stage == 3 else x

    def to_map(self, x: Tensor, stage: int, image_size: Sequence[int], norm: bool) -> Tensor:
        """What a stage gave -> (B, C, H, W), without the class token."""
        if stage == 3 and norm:
            x = self.norm(x)
        if stage == 3 and self.has_token:
            x = x[:, 1:].unflatten(1, [-(-side // 32) for side in image_size])
        return channels_first(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, N, C) -> logits (B, num_classes), or what comes before the classifier."""
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x[:, 1:].mean(dim=1) if self.has_token else x.mean(dim=1)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last chosen one, the head, and the norm, which is of the fourth stage."""
        wanted = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        shorter = len(self.stages) < 4
        if prune_norm or shorter:
            self.norm = nn.Identity()
        if shorter:
            self.has_token, self.pools = False, ("avg", "")
        return wanted

    def no_weight_decay(self) -> set[str]:
        """The class token alone, as released."""
        return {"stages.3.cls_token"}


RENAMES = (
    (r"^patch_embed1\.proj\.(0|3|6)\.", lambda m: f"stem.{int(m[1]) // 3}.conv."),
    (r"^patch_embed1\.proj\.(1|4|7)\.", lambda m: f"stem.{int(m[1]) // 3}.norm."),
    (r"^patch_embed([234])\.proj\.0\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.conv."),
    (r"^patch_embed([234])\.proj\.1\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.norm."),
    (r"^pos_embed([1234])$", lambda m: f"stages.{int(m[1]) - 1}.pos_embed"),
    (r"^cls_token$", "stages.3.cls_token"),
    (r"^block([1234])\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    (r"\.att\.mha\.W_([qv])\.", r".attn.\1."),
    (r"\.att\.mha\.attn\.Qlandmark_op\.", ".attn.landmarks.conv."),
    (r"\.att\.mha\.attn\.Qnorm_act\.0\.", ".attn.landmarks.norm."),
    (r"\.att\.mha\.attn\.conv\.", ".attn.local."),
    (r"\.att\.mha\.ff\.", ".attn.proj."),
    (r"\.att\.", "."),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published weights (or our own) -> weights of ``model``.

    Raises:
        VisionKitError: they are not of this architecture.
    """
    state = unwrap(state_dict)
    if "stem.0.conv.weight" not in state:
        state = {renamed(key, RENAMES): value for key, value in state.items()}
    depths, own = options_of("soft_small", state).get("depths"), tuple(len(stage.blocks) for stage in model.stages)
    if depths and depths[: len(own)] != own:
        raise VisionKitError(f"SOFT: the checkpoint is the released soft_small; build the model with depths={depths}")
    return complete(state, model, head=("norm.", "head."))


def options_of(variant: str, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The depths of a checkpoint whose names show that it is the released ``small``, deeper than the paper's."""
    names = {re.match(r"(stages\.\d\.blocks\.\d+)?", renamed(key, RENAMES))[0] for key in unwrap(state_dict)}
    released = RELEASED_DEPTHS.get(variant.rsplit("_", 1)[1], ())
    blocks = {f"stages.{i}.blocks.{j}" for i, depth in enumerate(released) for j in range(depth)}
    return dict(depths=released) if released and names - {""} == blocks else {}


def _create(variant: str, pretrained: bool = False, **options: Any) -> SOFT:  # noqa: ANN401
    arch = dict(ARCHS[variant.rsplit("_", 1)[1]], symmetric=variant.startswith("soft_norm"))
    return create(SOFT, variant, pretrained, checkpoint_filter_fn, arch, options, options_of)


default_cfgs = generate_default_cfgs(
    {
        f"{family}_{arch}.untrained": default_cfg(pool_size=None, crop_pct=0.9, first_conv="stem.0.conv")
        for family in ("soft", "soft_norm")
        for arch in ARCHS
    }
)


@register_model
def soft_tiny(pretrained: bool = False, **kwargs: Any) -> SOFT:  # noqa: ANN401
    """SOFT, 13.1 M parameters; published top-1 on ImageNet-1k 79.3."""
    return _create("soft_tiny", pretrained, **kwargs)


@register_model
def soft_small(pretrained: bool = False, **kwargs: Any) -> SOFT:  # noqa: ANN401
    """SOFT, 24.1 M parameters; published top-1 on ImageNet-1k 82.2; a released file of 38.9 M is built as such."""
    return _create("soft_small", pretrained, **kwargs)


@register_model
def soft_medium(pretrained: bool = False, **kwargs: Any) -> SOFT:  # noqa: ANN401
    """SOFT, 45.8 M parameters; published top-1 on ImageNet-1k 82.9."""
    return _create("soft_medium", pretrained, **kwargs)


@register_model
def soft_large(pretrained: bool = False, **kwargs: Any) -> SOFT:  # noqa: ANN401
    """SOFT, 64.7 M parameters; published top-1 on ImageNet-1k 83.1."""
    return _create("soft_large", pretrained, **kwargs)


@register_model
def soft_huge(pretrained: bool = False, **kwargs: Any) -> SOFT:  # noqa: ANN401
    """SOFT, 87.1 M parameters; published top-1 on ImageNet-1k 83.3."""
    return _create("soft_huge", pretrained, **kwargs)


@register_model
def soft_norm_tiny(pretrained: bool = False, **kwargs: Any) -> SOFT:  # noqa: ANN401
    """SOFT++, 13.1 M parameters; published top-1 on ImageNet-1k 79.4."""
    return _create("soft_norm_tiny", pretrained, **kwargs)


@register_model
def soft_norm_small(pretrained: bool = False, **kwargs: Any) -> SOFT:  # noqa: ANN401
    """SOFT++, 24.1 M parameters; published top-1 on ImageNet-1k 82.4; a released file of 38.9 M is built as such."""
    return _create("soft_norm_small", pretrained, **kwargs)


@register_model
def soft_norm_medium(pretrained: bool = False, **kwargs: Any) -> SOFT:  # noqa: ANN401
    """SOFT++, 45.8 M parameters; published top-1 on ImageNet-1k 83.1."""
    return _create("soft_norm_medium", pretrained, **kwargs)


@register_model
def soft_norm_large(pretrained: bool = False, **kwargs: Any) -> SOFT:  # noqa: ANN401
    """SOFT++, 64.7 M parameters; published top-1 on ImageNet-1k 83.3."""
    return _create("soft_norm_large", pretrained, **kwargs)


@register_model
def soft_norm_huge(pretrained: bool = False, **kwargs: Any) -> SOFT:  # noqa: ANN401
    """SOFT++, 87.1 M parameters; published top-1 on ImageNet-1k 83.4."""
    return _create("soft_norm_huge", pretrained, **kwargs)
