"""The bundled small NViST, and the files such models are kept in.

A file is safetensors in half precision. Its metadata hold ``model``, the options of [visionkit.nvs.model.NViST] as
JSON, and ``scale``, what is known of the training scenes: ``near_far``, and the usual ``distance`` of an input camera
from the ``centre``.
"""

import inspect
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from visionkit.checks import check_keys
from visionkit.engine.checkpoints import load_checkpoint, state_dict_of
from visionkit.engine.config import building
from visionkit.errors import VisionKitError
from visionkit.files import beside
from visionkit.nvs.captures.scene import CENTRES
from visionkit.nvs.model import NViST
from visionkit.nvs.published import load_weights

# where a file does not tell: a camera half-way out of the unit cube that a capture is scaled to
USUAL_SCALE = dict(near_far=(0.05, 1.5), distance=0.5, centre="cube")
SHIPPED = Path(__file__).with_name("weights") / "nvist_small.safetensors"


def save_small(path: str | os.PathLike, model: NViST, options: dict[str, Any], scale: dict[str, Any]) -> None:
    """Writes a model that [load_small] reads.

    Args:
        path: the file; its folder must exist.
        model: model whose weights are written, as float16.
        options: options that the model was built from.
        scale: ``near_far`` (two numbers), ``distance``, and ``centre`` (see [visionkit.nvs.data.SceneViews]).
    """
    tensors = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    metadata = dict(model=json.dumps({key: value for key, value in options.items() if key != "type"}))
    with beside(path) as temporary:
        temporary.write_bytes(save(tensors, dict(metadata, scale=json.dumps(scale))))


def scale_of(meta: Any, path: str | os.PathLike) -> dict[str, Any]:
    """What a file's metadata tell of ``scale``; what older ones leave out is that of USUAL_SCALE.

    Args:
        meta: a training checkpoint's ``meta``, or ``scale`` of a file of [save_small].
        path: the file, for messages.

    Raises:
        VisionKitError: a value that cannot be.
    """
    expected = dict(
        near_far=("two numbers, 0 < near < far", _is_near_far),
        distance=("a number above 0", _is_length),
        centre=(f"one of {', '.join(CENTRES)}", CENTRES.__contains__),
    )
    if not isinstance(meta, dict):
        raise VisionKitError(f"{path}: does not describe the scenes it was trained on; get the file again")
    scale = {key: meta.get(key, usual) for key, usual in USUAL_SCALE.items()}
    for key, value in scale.items():
        words, holds = expected[key]
        if not holds(value):
            raise VisionKitError(f"{path}: {key} is {value!r}; expected {words}; get the file again")
    return scale


def _is_length(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


def _is_near_far(value: Any) -> bool:
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2
    return is_pair and all(map(_is_length, value)) and value[0] < value[1]


def load_small(path: str | os.PathLike) -> tuple[NViST, dict[str, Any]]:
    """Reads a model written by [save_small].

    Returns:
        The model in evaluation mode, and ``scale``.

    Raises:
        VisionKitError: the file is missing, damaged, or not one of these.
    """
    path = Path(path)
    if not path.is_file():
        raise VisionKitError(f"{path}: no such file; expected weights written by visionkit")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}
        options, scale = json.loads(metadata["model"]), json.loads(metadata["scale"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise VisionKitError(f"{path}: is damaged or not an NViST of visionkit; get the file again") from error
    scale = scale_of(scale, path)
    model = build_described(options, path)
    load_weights(model, tensors, str(path))
    return model.eval(), scale


def load_trained(path: str | os.PathLike) -> tuple[NViST, dict[str, Any], dict[str, Any]]:
    """Reads a checkpoint of `visionkit train`, with the running mean of its weights where it has one.

    Returns:
        The model, its options, and ``scale``.

    Raises:
        VisionKitError: the file is missing, damaged, or of another model.
    """
    checkpoint = load_checkpoint(path)
    meta = checkpoint.get("meta") or {}
    try:
        options = json.loads(meta["model"])
        name = options.pop("type")
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise VisionKitError(f"{path}: does not say which model it belongs to; use one of `visionkit train`") from error
    if name != "visionkit.NViST":
        raise VisionKitError(f"{path}: holds a {name}; expected a visionkit.NViST")
    scale = scale_of(meta, path)
    model = build_described(options, path)
    load_weights(model, state_dict_of(checkpoint, path), str(path))
    return model, options, scale


def build_described(options: Any, path: str | os.PathLike) -> NViST:
    """An NViST with the options that a file of weights tells.

    The file can name no class to call and no other file to read.

    Raises:
        VisionKitError: they are no options of an NViST.
    """
    if not isinstance(options, dict):
        raise VisionKitError(f"{path}: does not describe an NViST; get the file again")
    check_keys(options, inspect.signature(NViST).parameters, str(path))
    for_inference = dict(options, lpips_weight=0, mae_checkpoint=None)
    # the initial values are thrown away and shall not move the user's seed
    with building(str(path)), torch.random.fork_rng(devices=[]):
        return NViST(**for_inference)


def load_shipped() -> tuple[NViST, dict[str, Any]]:
    """The small model that comes with the package, in evaluation mode, and its ``scale``."""
    if not SHIPPED.is_file():
        raise VisionKitError(
            f"{SHIPPED}: the bundled small model is missing; install visionkit again or give --weights"
        )
    return load_small(SHIPPED)
