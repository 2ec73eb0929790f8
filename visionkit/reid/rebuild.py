"""A trained ReID model again, from its checkpoint file alone, ours or a released one."""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from visionkit.backbones import ResNet
from visionkit.engine.checkpoints import load_checkpoint, state_dict_of
from visionkit.engine.config import known_names
from visionkit.errors import VisionKitError
from visionkit.registry import MODELS
from visionkit.reid.networks import CoreReID, SourceReID
from visionkit.reid.published import checkpoint_filter_fn, released_stage

IMAGE_SIZE = (256, 128)  # height, width: what person ReID uses
# depth of a ResNet by the blocks of its stages, basic ones and bottlenecks
BASIC = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34}
BOTTLENECK = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
# options that name other files of weights, also inside timm's `pretrained_cfg`, whose sizes are of use
SOURCES = ("weights", "checkpoint_path", "init_cfg", "file", "url", "hf_hub_id", "state_dict")


class Rebuilt(NamedTuple):
    """A model in eval mode and the (height, width) of its images."""

    model: nn.Module
    image_size: tuple[int, int]


def rebuild(path: str | Path) -> Rebuilt:
    """Build the model that a checkpoint of ``visionkit train`` describes, or that a released file of CORE-ReID holds.

    Raises:
        VisionKitError: no readable checkpoint, or one without a model's config or with one that does not fit.
    """
    checkpoint = load_checkpoint(path)
    weights, meta = state_dict_of(checkpoint, path), checkpoint.get("meta")
    if stage := released_stage(weights):
        try:
            return Rebuilt(released_network(weights, stage).eval(), IMAGE_SIZE)
        except VisionKitError as error:
            raise VisionKitError(f"{path}: {error}") from error
    try:
        config = json.loads(meta["model"])
        image_size = tuple(int(side) for side in meta.get("image_size") or IMAGE_SIZE)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise VisionKitError(
            f"{path}: does not say which model it belongs to; use a checkpoint of `visionkit train` or one of the "
            "released CORE-ReID, or build the model, load the weights and pass the model"
        ) from error
    if len(image_size) != 2 or min(image_size) < 1:
        raise VisionKitError(f"{path}: holds the image size {image_size}, expected (height, width); get it again")
    return Rebuilt(_build(config, weights, path).eval(), image_size)


def released_network(state_dict: Mapping[str, Tensor], stage: str) -> SourceReID | CoreReID:
    """The network of a released state dict, with its weights.

    Depth and number of classes are read off names and shapes. ResNet-18 and 34 keep the last stride of 2, as in the
    code of version 2; the others have 1.

    Args:
        state_dict: the released state dict.
        stage: stage of training, as :func:`~visionkit.reid.published.released_stage` tells it.

    Raises:
        VisionKitError: entries are missing, or of another network.
    """
    state, part = checkpoint_filter_fn(state_dict), "" if stage == "source" else "teacher."
    firsts = [rf"{part}backbone\.layer{i}\.\d+\.conv1\.weight" for i in (1, 2, 3, 4)]
    blocks = tuple(sum(bool(re.fullmatch(first, key)) for key in state) for first in firsts)
    is_deep = f"{part}backbone.layer1.0.conv3.weight" in state
    depth = (BOTTLENECK if is_deep else BASIC).get(blocks)
    if depth is None:
        raise VisionKitError(f"published checkpoint: no ResNet has stages of {blocks} blocks; is it another network's?")
    backbone, num_classes = ResNet(depth, last_stride=1 if is_deep else 2), len(state[f"{part}classifier.weight"])
    model = SourceReID(backbone, num_classes) if part == "" else CoreReID(backbone, num_classes, preset="released")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise VisionKitError("published checkpoint: entries are missing or of other shapes; is it damaged?") from error
    return model


def model_name(model: nn.Module) -> str:
    """A name for exactly these weights: class and a hash, as in ``CoreReID-0a1b2c3d4e5f6071``."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"{type(model).__name__}-{digest.hexdigest()[:16]}"


def _build(config: Any, weights: Mapping[str, Tensor], path: str | Path) -> nn.Module:
    config = _without_weights(config)
    _check_types(config, path)
    if (sketch := _sketch(config)) is not None:
        _load(sketch, weights, path)
    try:
        model = MODELS.build(config)
    except VisionKitError as error:
        raise VisionKitError(f"{path}: {error}") from error
    except Exception as error:
        raise VisionKitError(f"{path}: the model that it describes cannot be built; is it damaged?") from error
    if not hasattr(model, "extract"):
        raise VisionKitError(
            f"{path}: holds a {type(model).__name__}, expected a re-identification model; give one of visionkit train"
        )
    _load(model, weights, path)
    return model


def _sketch(config: Any) -> nn.Module | None:
    """The model without memory for its weights, of which a damaged file may tell any size; None if it needs numbers."""
    try:
        with torch.device("meta"):
            return MODELS.build(config)
    except Exception:  # some read numbers off tensors as they are built
        return None


def _load(model: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a sketch takes no values
            model.load_state_dict(weights)
    except RuntimeError as error:
        raise VisionKitError(f"{path}: its weights do not fit the model that it describes; is it damaged?") from error


def _without_weights(config: Any) -> Any:
    """The checkpoint brings the weights: fetch none, and read no other file, which an old timm might run."""
    if isinstance(config, Mapping):
        kept = {key: _without_weights(value) for key, value in config.items() if key not in SOURCES}
        return dict(kept, pretrained=False) if "pretrained" in kept else kept
    return [_without_weights(value) for value in config] if isinstance(config, list) else config


def _check_types(config: Any, path: str | Path) -> None:
    """Only registered models may be built: a registry would import and call any other name."""
    if isinstance(config, list):
        for value in config:
            _check_types(value, path)
    if not isinstance(config, Mapping):
        return
    if "type" in config and config["type"] not in known_names(MODELS):
        raise VisionKitError(
            f"{path}: refused, it names {config['type']!r}, which is no model of visionkit; one of your own is "
            "known once the module that registers it is imported, so use visionkit.apis.ReIDInferencer after that"
        )
    for value in config.values():
        _check_types(value, path)
