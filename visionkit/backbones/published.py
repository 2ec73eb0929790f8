"""Published checkpoints: reading, unwrapping, and the check that a file is of the architecture that was asked for."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg, build_model_with_cfg, resolve_pretrained_cfg
from torch import Tensor, nn

from visionkit.errors import VisionKitError

STEMS = ("stem.0.conv.weight", "patch_embed.proj.0.weight", "patch_embed1.proj.0.weight", "patch_embed.proj.weight")
MAY_DIFFER = {"stem.0.conv.weight": 1, "head.weight": 0, "head.bias": 0}  # dimension of the channels or the classes
STAGES = tuple(f"stages.{i}." for i in range(4))
OUTPUT_NORMS = ("norms.", "extra_norms.")  # ours and the released ones on the maps of a detector's backbone


def create(
    cls: type[nn.Module],
    variant: str,
    pretrained: bool,
    filter_fn: Callable[[Mapping, nn.Module], dict],
    arch: dict[str, Any],
    options: dict[str, Any],
    options_of: Callable[[str, Mapping], dict] | None = None,
) -> nn.Module:
    """A model of a family, by timm's builder.

    Args:
        cls: class of the family.
        variant: the model's name.
        pretrained: load the weights of the model.
        filter_fn: makes a file's weights those of the model.
        arch: options of the variant.
        options: options given by the user, which override ``arch``.
        options_of: function (variant, weights of a file) -> options, which override ``arch`` too.
    """
    options = with_weights(variant, pretrained, options)
    state = options["pretrained_cfg"].state_dict if pretrained else None
    if state and options_of:
        arch = arch | options_of(variant, state)
    feature_cfg = dict(out_indices=(0, 1, 2, 3), feature_cls="getter")
    options = dict(arch, pretrained_filter_fn=filter_fn, feature_cfg=feature_cfg) | options
    return without_weights(build_model_with_cfg(cls, variant, pretrained, **options))


def with_weights(variant: str, pretrained: bool, options: dict[str, Any]) -> dict[str, Any]:
    """timm's options with what the ``file`` in them holds, so that a file of another kind is told in one line.

    Raises:
        VisionKitError: the file is missing, damaged, would run code, or holds no weights.
    """
    from visionkit.engine.checkpoints import load_checkpoint

    if not pretrained:
        return options
    cfg = resolve_pretrained_cfg(variant, options.get("pretrained_cfg"), options.get("pretrained_cfg_overlay"))
    file = cfg.file
    if cfg.source == "local-dir":  # a folder as timm's save_for_hf writes it
        names = ("model.safetensors", "pytorch_model.bin")
        file = next((str(Path(file, name)) for name in names if Path(file, name).is_file()), str(Path(file, names[0])))
    if file and Path(file).suffix != ".npz":  # which holds no code, and which timm's own ViT reads
        state = unwrap(load_checkpoint(file), file)
        cfg = dataclasses.replace(cfg, source="", state_dict=state, **_described(state, cfg, options))
    return dict(options, pretrained_cfg=cfg, pretrained_cfg_overlay=None)


def _described(state: Mapping[str, Tensor], cfg: PretrainedCfg, options: Mapping[str, Any]) -> dict[str, Any]:
    """What timm is to know of a file's weights: from it a model has its sizes, or the weights are adapted to others."""
    sizes, (_, *size) = sizes_of(state), cfg.input_size
    channels = sizes["in_chans"]
    fits_as_is = channels != 3 and options.get("in_chans", channels) == channels
    first_conv = None if fits_as_is else cfg.first_conv  # old versions of timm would adapt it from three channels
    return dict(num_classes=sizes["num_classes"], input_size=(channels, *size), first_conv=first_conv)


def without_weights(model: nn.Module) -> nn.Module:
    """The model, whose description of its checkpoint would keep a second copy of the weights."""
    for part in model.modules():
        if isinstance(cfg := getattr(part, "pretrained_cfg", None), dict):
            cfg.pop("state_dict", None)
    return model


def unwrap(checkpoint: Mapping, path: str = "the checkpoint", prefix: str = "") -> dict[str, Tensor]:
    """The weights inside the usual wrappers, without the prefixes that parallel training and detectors put before.

    Args:
        checkpoint: content of a file.
        path: the file's path, for the message.
        prefix: only what lies under this name.

    Raises:
        VisionKitError: something else than tensors by name.
    """
    from visionkit.engine.checkpoints import state_dict_of

    state = below(state_dict_of(checkpoint, path), prefix)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if any(key.startswith("backbone.") for key in state):
        state = below(state, "backbone.")
    return {key.removeprefix("module.").removeprefix("body."): value for key, value in state.items()}


def renamed(key: str, renames: Sequence[tuple[str, str | Callable[[re.Match], str]]]) -> str:
    """A published name after the replacements (pattern, ours), one after the other."""
    for pattern, name in renames:
        key = re.sub(pattern, name, key)
    return key


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names start so, without that."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def sizes_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Channels of the image and number of classes, as options of a model that a file's weights fit."""
    stem = next((state[key] for key in STEMS if key in state and state[key].dim() == 4), None)
    bias = state.get("head.bias")
    return dict(
        in_chans=3 if stem is None else stem.shape[1],
        num_classes=len(bias) if bias is not None and bias.dim() == 1 else 1000,
    )


def complete(state: dict[str, Tensor], model: nn.Module, head: tuple[str, ...]) -> dict[str, Tensor]:
    """Check every entry against the model, and take from it what a file may lack: the classifier, or all of the head.

    What the model lacks as a whole (a head, late stages, a detector's norms) is left out. Channels of the image and
    classes may differ: timm adapts the ones and leaves out the others.

    Args:
        state: weights under our names.
        model: whose weights they are to be.
        head: prefixes of what a detector's file leaves out.

    Raises:
        VisionKitError: an entry is missing, left over or of another shape.
    """
    own, family = model.state_dict(), type(model).__name__
    parts = (*head, *STAGES, *OUTPUT_NORMS)
    lacking = tuple(part for part in parts if not any(key.startswith(part) for key in own))
    state = {key: value for key, value in state.items() if not key.startswith(lacking)}
    free = ("head.",) if any(key.startswith(head) for key in state) else head
    for key, value in own.items():
        if key.endswith("num_batches_tracked") or key.startswith(free):
            state.setdefault(key, value)
        if key not in state:
            raise VisionKitError(f"{family}: the checkpoint has nothing for {key}; give a file of this architecture")
        if not fits(state[key].shape, value.shape, MAY_DIFFER.get(key)):
            raise VisionKitError(
                f"{family}: the checkpoint's {key} has shape {tuple(state[key].shape)}, expected "
                f"{tuple(value.shape)}; give a file of this architecture"
            )
    if extra := [key for key in state if key not in own]:
        raise VisionKitError(
            f"{family}: the checkpoint's {extra[0]} and {len(extra) - 1} more entries have no place; "
            "give a file of this architecture"
        )
    return state


def fits(shape: Sequence[int], expected: Sequence[int], free: int | None) -> bool:
    """Whether two shapes agree, but for the free dimension."""
    if free is None or len(shape) != len(expected):
        return tuple(shape) == tuple(expected)
    return all(a == b for i, (a, b) in enumerate(zip(shape, expected)) if i != free)
