"""What timm asks of a model, for every family with a stem, four stages and a head."""

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visionkit.backbones.layers import channels_first, channels_last
from visionkit.checks import check_counts, check_numbers, given
from visionkit.errors import VisionKitError

MIN_SIZE = 32  # pixels


def default_cfg(**options: Any) -> dict[str, Any]:  # noqa: ANN401
    """timm's description of a checkpoint's inputs; no weights are hosted."""
    usual = dict(
        url="",
        num_classes=1000,
        input_size=(3, 224, 224),
        crop_pct=0.875,
        interpolation="bicubic",
        fixed_input_size=False,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        classifier="head",
    )
    return usual | options


class HierarchicalBackbone(nn.Module):
    """Base of the families: gives features, intermediates and checkpointing, given ``stem`` and ``stages``.

    A family sets ``stem``, ``stages`` and ``head``, and writes ``forward_head``. The stem and every [Stage] take and
    give a map (B, H, W, C).

    Args:
        dims: channels of the four stages.
        num_classes: 0 for none.
        head_hidden_size: channels before the classifier.
        pools: accepted values of ``global_pool``.
        global_pool: initial pooling, one of ``pools``.

    Raises:
        VisionKitError: another ``global_pool``.
    """

    stem: nn.Module
    stages: nn.ModuleList
    head: nn.Module

    def __init__(
        self,
        dims: Sequence[int],
        num_classes: int,
        head_hidden_size: int,
        pools: Sequence[str] = ("avg", ""),
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.head_hidden_size = num_classes, dims[-1], head_hidden_size
        self.pools = pools
        self.set_global_pool(global_pool)
        self.feature_info = [dict(num_chs=dim, reduction=4 * 2**i, module=f"stages.{i}") for i, dim in enumerate(dims)]

    def forward_stages(self, x: Tensor, count: int = 4) -> Iterator[Tensor]:
        """Images (B, C, H, W) -> the map (B, H', W', C') after each of the first stages.

        Raises:
            VisionKitError: an image of fewer than 32 pixels a side.
        """
        if min(x.shape[-2:]) < MIN_SIZE:
            raise VisionKitError(
                f"image of {x.shape[-2]} x {x.shape[-1]} pixels: {type(self).__name__} needs at least {MIN_SIZE} a side"
            )
        x = self.stem(channels_last(x).contiguous())
        for stage in list(self.stages)[:count]:
            x = stage(x)
            yield x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the last map (B, num_features, H / 32, W / 32)."""
        *_, last = self.forward_stages(x)
        return self.to_features(last, len(self.stages) - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of chosen stages, and what ``forward_features`` gives (would give, if it stopped early too).

        Args:
            x: images (B, C, H, W).
            indices: numbers of the stages, from 0; an int takes the last so many, None all.
            norm: apply the final norm, where the family has one, to the last map.
            stop_early: leave out the stages after the last chosen one.
            output_fmt: ``"NCHW"`` alone.
            intermediates_only: leave the final features out.

        Raises:
            VisionKitError: stages that there are not, none, or another ``output_fmt``.
        """
        if output_fmt != "NCHW":
            raise VisionKitError(f"output_fmt={output_fmt!r}: expected 'NCHW'")
        wanted, last = chosen_stages(indices, len(self.stages))
        maps = list(self.forward_stages(x, last + 1 if stop_early else len(self.stages)))
        image_size = x.shape[-2:]
        intermediates = [self.to_map(maps[i], i, image_size, norm) for i in wanted]
        return intermediates if intermediates_only else (self.to_features(maps[-1], len(maps) - 1), intermediates)

    def to_map(self, x: Tensor, stage: int, image_size: Sequence[int], norm: bool) -> Tensor:
        """What a stage gave for an image of that height and width -> (B, C, H, W)."""
        return channels_first(x)

    def to_features(self, x: Tensor, stage: int) -> Tensor:
        """What a stage gave, (B, H, W, C) -> the result of ``forward_features``, if it is the last: (B, C, H, W)."""
        return channels_first(x)

    def set_global_pool(self, global_pool: str) -> None:
        """How ``forward_head`` makes a vector of the features.

        Raises:
            VisionKitError: one that the model does not have.
        """
        if global_pool not in self.pools:
            accepted = ", ".join(map(repr, self.pools))
            raise VisionKitError(f"global_pool={global_pool!r}: {type(self).__name__} takes one of {accepted}")
        self.global_pool = global_pool

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier; 0 for none.

        Raises:
            VisionKitError: a ``global_pool`` that the model does not have, or no number of classes.
        """
        check_counts("", 0, num_classes=num_classes)
        if global_pool is not None:
            self.set_global_pool(global_pool)
        self.num_classes = num_classes
        like = next(self.stem.parameters())
        head = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        self.head = head.to(device=like.device, dtype=like.dtype)
        init_weights(self.head)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last chosen one, and the head; a new one sits on what is left."""
        wanted, last = chosen_stages(indices, len(self.stages))
        self.stages = self.stages[: last + 1]
        if prune_head:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.reset_classifier(0, "")
        return wanted

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping what they made."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict:
        """Names of parameters -> layers, for layer-wise learning rates."""
        blocks = (
            r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.(?!blocks)", (0,)),
                (r"^(?:proj|norm)", (99999,)),
            ]
        )
        return dict(stem=r"^stem", blocks=blocks)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay beside biases and norms."""
        return set()

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head


class Stage(nn.Module):
    """What enters a stage, and its blocks, each called with the map and its rotary tables, if there are any."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], rotary: nn.Module | None = None) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.rotary = rotary
        self.grad_checkpointing = False

    def enter(self, x: Tensor) -> Tensor:
        """Halve the map, but for the first stage: (B, H, W, C) -> (B, H', W', C')."""
        return self.downsample(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H', W', C')."""
        x = self.enter(x)
        tables = () if self.rotary is None else (self.rotary(x),)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, *tables, use_reentrant=False)
            else:
                x = block(x, *tables)
        return x


def init_weights(module: nn.Module) -> None:
    """Truncated normals of 0.02 for linear layers; the rest keeps torch's start."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def chosen_stages(indices: int | Sequence[int] | None, count: int) -> tuple[list[int], int]:
    """Numbers of the chosen ones of so many stages, and the last of them, as timm takes them.

    Raises:
        VisionKitError: there are no such stages, or none is chosen.
    """
    if isinstance(indices, Integral):
        known = 1 <= indices <= count
    else:
        known = indices is None or (len(indices) > 0 and all(i in range(-count, count) for i in indices))
    if not known:
        raise VisionKitError(f"indices={indices!r}: expected stages from 0 to {count - 1}, or how many of the last")
    return feature_take_indices(count, indices)


def check_stages(
    dims: Sequence[int], depths: Sequence[int], num_heads: Sequence[int], layer_scale: Sequence[float] | None = None
) -> None:
    """Raises VisionKitError unless each has a value for each of four stages, and the heads divide the channels."""
    counts, scales = dict(dims=dims, depths=depths, num_heads=num_heads), given(layer_scale=layer_scale)
    for name, values in (counts | scales).items():
        if not isinstance(values, Sequence) or len(values) != 4:
            raise VisionKitError(f"{name}={values}: expected four values, one a stage")
    for name, values in counts.items():
        for i, value in enumerate(values):
            check_counts("", 1, **{f"{name}[{i}]": value})
    for value in layer_scale or ():
        check_numbers("", layer_scale=value)
    for i, (dim, heads) in enumerate(zip(dims, num_heads)):
        if dim % heads:
            raise VisionKitError(f"num_heads: {heads} heads of stage {i + 1} do not divide its {dim} channels (dims)")


def check_ends(in_chans: int, num_classes: int, drop_rate: float, drop_path_rate: float) -> None:
    """Raises VisionKitError unless channels and classes are counts, and the rates are from 0 to 1."""
    check_counts("", 1, in_chans=in_chans)
    check_counts("", 0, num_classes=num_classes)
    check_numbers("", 0, 1, drop_rate=drop_rate, drop_path_rate=drop_path_rate)


def pooled(x: Tensor, global_pool: str) -> Tensor:
    """(B, H, W, C) -> (B, C), or the map itself as (B, C, H, W) without pooling."""
    return x.mean(dim=(1, 2)) if global_pool == "avg" else channels_first(x)
