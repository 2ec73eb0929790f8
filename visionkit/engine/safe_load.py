"""Files of others read without running code from them: torch's pickles and safetensors."""

import argparse
import contextlib
import pickle
import pickletools
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from visionkit.errors import VisionKitError

# What savers keep beside the weights, which holds values and does nothing: options in a Namespace, and NumPy's numbers,
# a best score for instance, under the two names that their module has had.
HARMLESS = [
    argparse.Namespace,
    np.dtype,
    *[type(np.dtype(kind)) for kind in ("?", "i4", "i8", "f2", "f4", "f8")],
    *[(np.float64().__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
]


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary of a ``torch.save`` file, its tensors on the CPU.

    Raises:
        VisionKitError: The file would run code, or is truncated or no checkpoint.
    """
    try:
        _check_sizes(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")  # about a pickle's protocol
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = _foreign_name(path)
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


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises VisionKitError if it is truncated or none."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise VisionKitError(
            f"{path}: cannot be read as safetensors (damaged or another format); get it again"
        ) from error


def _foreign_name(path: Path) -> str | None:
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
