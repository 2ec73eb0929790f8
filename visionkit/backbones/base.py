"""What timm asks of a model, for every family with a stem, four stages and a head."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visionkit.backbones.layers import channels_first, channels_last
from visionkit.errors import VisionKitError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MIN_SIZE = 32  # pixels


def default_cfg(**options: Any) -> dict[str, Any]:  # noqa: ANN401
    """timm's description of a checkpoint's inputs; no weights are hosted."""
    return (
        dict(
            url="",
            num_classes=1000,
            input_size=(3, 224, 224),
            crop_pct=0.875,
            interpolation="bicubic",
            fixed_input_size=False,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            classifier="head",
        )
        | options
    )


class HierarchicalBackbone(nn.Module):
    """Base of the families: gives features, intermediates and checkpointing, given ``stem`` and ``stages``.

    A family sets ``stem`` and ``stages``, and writes ``forward_head`` and ``reset_classifier``. The stem takes and a
    stage gives a map (B, H, W, C); stages have ``enter(x)`` (what comes before the blocks: downsampling, positions),
    ``blocks``, each called with the map and ``context(x)``, and ``leave(x)``.

    Args:
        dims: channels of the four stages.
        num_classes: 0 for none.
        head_hidden_size: channels before the classifier.
    """

    stem: nn.Module
    stages: nn.ModuleList

    def __init__(self, dims: Sequence[int], num_classes: int, head_hidden_size: int) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.head_hidden_size = num_classes, dims[-1], head_hidden_size
        self.grad_checkpointing = False
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
        x = self.stem(channels_last(x.contiguous(memory_format=torch.channels_last)))
        for stage in list(self.stages)[:count]:
            x = stage.enter(x)
            context = stage.context(x)
            for block in stage.blocks:
                if self.grad_checkpointing and torch.is_grad_enabled() and not torch.jit.is_scripting():
                    x = checkpoint(block, x, *context, use_reentrant=False)
                else:
                    x = block(x, *context)
            x = stage.leave(x)
            yield x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the last map (B, num_features, H / 32, W / 32)."""
        *_, last = self.forward_stages(x)
        return self.to_features(last)

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
        """The maps of chosen stages, and what ``forward_features`` gives.

        Args:
            x: images (B, C, H, W).
            indices: which stages; an int takes the last so many, None all.
            norm: apply the final norm, where the family has one, to the last map.
            stop_early: leave out the stages after the last chosen one.
            output_fmt: ``"NCHW"`` alone.
            intermediates_only: leave the final features out.
        """
        if output_fmt != "NCHW":
            raise VisionKitError(f"output_fmt={output_fmt!r}: expected 'NCHW'")
        wanted, last = feature_take_indices(len(self.stages), indices)
        maps = list(self.forward_stages(x, last + 1 if stop_early else len(self.stages)))
        image_size = x.shape[-2:]
        intermediates = [self.to_map(maps[i], i, image_size, norm) for i in wanted]
        return intermediates if intermediates_only else (self.to_features(maps[-1]), intermediates)

    def to_map(self, x: Tensor, stage: int, image_size: Sequence[int], norm: bool) -> Tensor:
        """What a stage gave for an image of that height and width -> (B, C, H, W)."""
        return channels_first(x)

    def to_features(self, x: Tensor) -> Tensor:
        """What the last stage gave -> the result of ``forward_features``."""
        return channels_first(x)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last chosen one, and the head."""
        wanted, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_head:
            self.reset_classifier(0, "")
        return wanted

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping what they made."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
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

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay beside biases and norms."""
        return set()

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head


class Stage(nn.Module):
    """What enters a stage, its blocks, and what every block is given beside the map."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], rotary: nn.Module | None = None) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.rotary = rotary

    def enter(self, x: Tensor) -> Tensor:
        """Halve the map, but for the first stage."""
        return self.downsample(x)

    def context(self, x: Tensor) -> tuple:
        """Arguments of the blocks beside the map."""
        return () if self.rotary is None else (self.rotary(x),)

    def leave(self, x: Tensor) -> Tensor:
        """The map as the next stage and ``to_map`` take it."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H', W', C')."""
        x = self.enter(x)
        context = self.context(x)
        for block in self.blocks:
            x = block(x, *context)
        return self.leave(x)


def pooled(x: Tensor, global_pool: str) -> Tensor:
    """(B, H, W, C) -> (B, C), or the map itself as (B, C, H, W) without pooling."""
    return x.mean(dim=(1, 2)) if global_pool == "avg" else channels_first(x)
