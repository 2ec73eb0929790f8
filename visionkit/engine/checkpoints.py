"""Checkpoints that survive: written beside and renamed, with a checksum, and read without running code."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import pickle
import pickletools
import re
import threading
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from safetensors import SafetensorError
from safetensors.torch import load_file

from visionkit.errors import VisionKitError
from visionkit.files import FULL, beside, cannot_write, sha256_of

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # whose weights a file with several means
# What savers keep beside the weights, which holds values and does nothing: options in a Namespace, and NumPy's numbers,
# a best score for instance, under the two names that their module has had.
HARMLESS = [
    argparse.Namespace,
    np.dtype,
    *[type(np.dtype(kind)) for kind in ("?", "i4", "i8", "f2", "f4", "f8")],
    *[(np.float64().__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
]
_EPOCH_FILE = re.compile(r"epoch_(\d+)(?:_iter_(\d+))?\.pth")  # so many epochs, and iterations of the next one


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


def quiet_on_a_full_disk() -> None:
    """Log files and TensorBoard would each print a traceback; what is raised in the run says it in one line."""
    logging.raiseExceptions = False
    others = threading.excepthook

    def hook(problem: threading.ExceptHookArgs) -> None:
        if getattr(problem.exc_value, "errno", None) not in FULL:
            others(problem)

    threading.excepthook = hook


def write_text(path: str | Path, text: str) -> None:
    """Write a small text file under a temporary name, then rename it.

    Raises:
        VisionKitError: The disk is full or the folder cannot be written.
    """
    with beside(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def remove_leftovers(folder: str | Path) -> None:
    """Delete the temporary files that a killed run left under a folder."""
    for path in Path(folder).rglob(".*.tmp"):
        if re.fullmatch(r"\..+\.[0-9a-f]+\.tmp", path.name):
            path.unlink(missing_ok=True)


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
    if path.suffix == ".safetensors":
        return {"state_dict": _load_safetensors(path)}
    try:
        _check_sizes(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")  # about a pickle's protocol
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = foreign_name(path)
        what = f"it would run {name!r}" if name else "it is not a plain checkpoint"
        raise VisionKitError(f"{path}: refused, {what}; only files of plain tensors are read") from error
    except Exception as error:  # a damaged zip or pickle fails in many ways
        raise VisionKitError(
            f"{path}: cannot be read as a checkpoint (damaged or another format); get it again"
        ) from error
    if not isinstance(checkpoint, dict):
        raise VisionKitError(
            f"{path}: holds a {type(checkpoint).__name__}, expected a dictionary; give a file of weights"
        )
    return checkpoint


def foreign_name(path: Path) -> str | None:
    """The first function or class that a pickled file names and that is refused; nothing is run to find it."""
    with contextlib.suppress(Exception), contextlib.ExitStack() as stack:  # what is damaged names nothing
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            file = stack.enter_context(archive.open(name))
        else:
            file = stack.enter_context(open(path, "rb"))
        for _ in range(4):  # before zip, torch wrote a magic number, a version and the system first
            for name in _names_in_pickle(file):
                if not name.startswith(("torch.", "collections.OrderedDict", "argparse.Namespace")):
                    return name
    return None


def _names_in_pickle(file: BinaryIO) -> Iterator[str]:
    strings, memo = [], {}
    for code, argument, _ in pickletools.genops(file):
        if code.name in ("BINUNICODE", "SHORT_BINUNICODE", "UNICODE"):
            strings.append(argument)
        elif code.name == "MEMOIZE":
            memo[len(memo)] = strings[-1] if strings else ""
        elif code.name in ("BINGET", "LONG_BINGET") and argument in memo:
            strings.append(memo[argument])
        elif code.name == "GLOBAL":
            module, _, name = argument.partition(" ")
            yield f"{IMPORT_MAPPING.get(module, module)}.{name}"  # old protocols write Python 2's names
        elif code.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])


def _check_sizes(path: Path) -> None:
    """A zip whose entries claim more than the file holds would be given that much memory; torch stores uncompressed."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("its entries are larger than the file")


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise VisionKitError(
            f"{path}: cannot be read as safetensors (damaged or another format); get it again"
        ) from error


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


def epoch_checkpoints(folder: str | Path) -> Iterator[Path]:
    """The ``epoch_<n>.pth`` and ``epoch_<n>_iter_<m>.pth`` files of a folder, newest first."""
    found = [(at, path) for path in Path(folder).glob("epoch_*.pth") if (at := _position(path))]
    return (path for _, path in sorted(found, reverse=True))


def _position(path: Path) -> tuple[int, int] | None:
    """Whole epochs, and iterations of the next, that a file's name tells."""
    match = _EPOCH_FILE.fullmatch(path.name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def no_longer_needed(folder: str | Path, keep: int) -> list[Path]:
    """All epoch checkpoints but the newest ``keep``, and those inside an epoch that a newer one follows."""
    files = list(epoch_checkpoints(folder))
    whole = [path for path in files if _position(path)[1] == 0]
    newest = max((_position(path) for path in whole), default=(0, 0))
    return whole[keep:] + [path for path in files if _position(path)[1] and _position(path) < newest]


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint with its checksum."""
    path.unlink(missing_ok=True)
    checksum_file(path).unlink(missing_ok=True)


def newest_whole_checkpoint(folder: str | Path) -> Path | None:
    """The newest epoch checkpoint that is whole; a damaged newer one is passed over with a warning."""
    for path in epoch_checkpoints(folder):
        if is_whole(path):
            return path
        print_log(f"{path}: damaged, falling back to the checkpoint before it", "current", logging.WARNING)
    return None


def plain_message_hub(state: dict[str, Any]) -> dict[str, Any]:
    """A message hub's state with its history buffers as tensors, so that ``weights_only`` reads it."""
    logs = {
        name: dict(log=torch.as_tensor(buffer.data[0]), count=torch.as_tensor(buffer.data[1]))
        for name, buffer in state["log_scalars"].items()
    }
    runtime = {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in state["runtime_info"].items()
        if isinstance(value, (int, float, str))
    }
    return dict(log_scalars=logs, runtime_info=runtime, resumed_keys=dict(state["resumed_keys"]))


def message_hub_state(plain: dict[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`plain_message_hub`."""
    logs = {
        name: HistoryBuffer(entry["log"].cpu().numpy().tolist(), entry["count"].cpu().numpy().tolist())
        for name, entry in plain["log_scalars"].items()
    }
    return dict(plain, log_scalars=logs)
