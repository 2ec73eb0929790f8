"""Checkpoints that survive: written beside and renamed, with a checksum, and read without running code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from visionkit.engine.safe_load import read_pickle, read_safetensors
from visionkit.errors import VisionKitError
from visionkit.files import beside, cannot_write, sha256_of, write_text

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # whose weights a file with several means


def save_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint and ``<path>.sha256`` so that a crash at any moment leaves the previous file whole.

    Args:
        checkpoint: A dictionary that :func:`load_checkpoint` may read: of tensors, numbers, strings and containers of
            them.
        path: The file. Its folder is made.

    Raises:
        VisionKitError: The disk is full or the folder cannot be written.
    """
    path = Path(path)
    checksum = checksum_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside(path) as temporary:
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            digest = sha256_of(temporary)
            if path.is_file():  # for a moment both files must be right, the old one and the new
                old = checksum.read_text(errors="replace") if checksum.is_file() else sha256_of(path)
                write_text(checksum, f"{digest}\n{old}")
            else:
                write_text(checksum, f"{digest}\n")
        write_text(checksum, f"{digest}\n")
    except OSError as error:
        raise cannot_write(path, error) from error
    except RuntimeError as error:  # torch's writer trips over what it could not write
        if not isinstance(error.__context__, OSError):
            raise
        raise cannot_write(path, error.__context__) from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a ``.pth`` or ``.safetensors`` file, to the CPU, without running code from it.

    Args:
        path: A file written by :func:`save_checkpoint`, a published ``torch.save`` file or a safetensors file.

    Returns:
        The stored dictionary. A safetensors file gives ``{"state_dict": tensors}``.

    Raises:
        VisionKitError: The file is missing, truncated, not a checkpoint, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise VisionKitError(f"{path}: no such checkpoint; give the path of a .pth or .safetensors file")
    if checksum_matches(path) is False:
        raise VisionKitError(f"{path}: damaged (its checksum differs); use an earlier checkpoint")
    return {"state_dict": read_safetensors(path)} if path.suffix == ".safetensors" else read_pickle(path)


def state_dict_of(checkpoint: Mapping, path: str | Path) -> Mapping[str, torch.Tensor]:
    """The weights of a checkpoint, whichever of the usual wrappers they are in; running means come before the others.

    Raises:
        VisionKitError: Something else than tensors by name; ``path`` is what the message calls the file.
    """
    state = next((checkpoint[key] for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)), checkpoint)
    for key, value in state.items():
        if not (isinstance(key, str) and isinstance(value, torch.Tensor)):
            raise VisionKitError(
                f"{path}: holds a {type(value).__name__} under {key!r:.80}, expected tensors by name; "
                "give a file of weights"
            )
    return state


def read_weights(path: str | Path) -> Mapping[str, torch.Tensor]:
    """The weights of a file; errors are those of :func:`load_checkpoint` and :func:`state_dict_of`."""
    return state_dict_of(load_checkpoint(path), path)


def load_exactly(model: nn.Module, state: Mapping[str, Any], path: str | Path) -> None:
    """Give a model all its weights. Raises VisionKitError where names or shapes differ."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise VisionKitError(
            f"{path}: is of another architecture ({first_difference(error)}); give one of this model"
        ) from error


def first_difference(error: RuntimeError) -> str:
    """The first key that ``load_state_dict`` complains of."""
    lines = str(error).splitlines()
    return lines[min(1, len(lines) - 1)].strip()[:200]


def checksum_file(path: Path) -> Path:
    """Where a file's checksum lies."""
    return path.with_name(path.name + ".sha256")


def checksum_matches(path: Path) -> bool | None:
    """Whether the file equals what was written; None where no checksum lies beside it."""
    checksum = checksum_file(path)
    return sha256_of(path) in checksum.read_text(errors="replace").split() if checksum.is_file() else None


def is_whole(path: Path) -> bool:
    """Whether a checkpoint equals what was written; one that was copied without its checksum, whether it is read."""
    matches = checksum_matches(path)
    if matches is None:
        try:
            load_checkpoint(path)
        except VisionKitError:
            return False
    return matches is not False


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint with its checksum."""
    path.unlink(missing_ok=True)
    checksum_file(path).unlink(missing_ok=True)
