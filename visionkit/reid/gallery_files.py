"""The files of a gallery index: its parts, and the lock that keeps two processes from writing to it at once.

A part is a safetensors file, written beside and renamed, that names the model.
"""

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import AcquireReturnProxy, FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from visionkit.errors import VisionKitError
from visionkit.files import beside, cannot_write

FORMAT = "visionkit-gallery-1"
UNKNOWN = (-1, -1)
LOCK = ".lock"


class Part(NamedTuple):
    """Some of an index's images.

    held: (N, D) float32, or None of what is written. paths: N names. stamps: (N, 2) int64, of :func:`stamp_of`.
    file: where it is written. digest: of what is written.
    """

    held: np.ndarray | None
    paths: list[str]
    stamps: np.ndarray
    file: Path | None = None
    digest: str = ""

    @property
    def features(self) -> np.ndarray:
        """(N, D) float32; those of a file are mapped anew each time, for every map that is kept keeps it open."""
        return _map_features(self.file) if self.held is None else self.held


def holds_index(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a gallery index."""
    return bool(part_files(Path(folder)))


@contextmanager
def writing(folder: str | os.PathLike) -> Iterator[None]:
    """Inside, no other process that asks likewise writes to an index's folder. It is made, and goes if it stays empty.

    Raises:
        VisionKitError: the folder cannot be written, or another process is writing to it.
    """
    folder = Path(folder)
    made = not folder.exists()
    try:
        with _lock(folder):
            try:
                yield
            finally:
                if made and not holds_index(folder):
                    with suppress(OSError):  # Windows lets go of it only when the lock is released, which removes it
                        (folder / LOCK).unlink()
    finally:
        if made:
            with suppress(OSError):  # it holds an index, or what somebody put there
                folder.rmdir()


def _lock(folder: Path) -> AcquireReturnProxy:
    """A lock that goes with the process, however that ends."""
    with naming_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(folder / LOCK, timeout=0).acquire()
        except Timeout as error:
            raise VisionKitError(f"{folder}: another process is writing to it; wait until that has ended") from error


def stamp_of(image: object) -> tuple[int, int]:
    """Size in bytes and last change in ns of a file, which tell whether it was replaced; ``UNKNOWN`` if it is none."""
    try:
        status = os.stat(image)  # type: ignore[arg-type]
    except (OSError, TypeError):  # gone, or an image in memory
        return UNKNOWN
    # an index has 64 bits for it, which the year 2262 and beyond do not fit
    return status.st_size, (status.st_mtime_ns + 2**63) % 2**64 - 2**63


@contextmanager
def naming_write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(folder, error) from error


def part_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"part_{'[0-9]' * 5}.safetensors"))


def write_part(file: Path, part: Part, model: str, weights: str) -> None:
    names = np.frombuffer(os.fsencode("\0".join(part.paths)), np.uint8)
    tensors = dict(features=np.ascontiguousarray(part.features), paths=names, stamps=np.ascontiguousarray(part.stamps))
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(tensor.reshape(-1).view(np.uint8))
    weights = weights.encode(errors="replace").decode()  # of another encoding; --weights tells it again
    meta = dict(format=FORMAT, model=model, weights=weights, digest=digest.hexdigest())
    try:
        with beside(file) as temporary:
            save_file(tensors, temporary, meta)
    except SafetensorError as error:  # what the system said is in its words alone
        number = re.search(r"os error (\d+)", str(error))
        told = (int(number[1]), os.strerror(int(number[1]))) if number else (str(error).replace("\n", " "),)
        raise cannot_write(file, OSError(*told)) from error


def read_part(file: Path) -> tuple[Part, tuple[str, str]]:
    """A part with its features mapped from the file, and the model and weights that it names."""
    try:
        with safe_open(file, "numpy") as tensors:  # checks the header against the file's size
            meta = tensors.metadata() or {}
            if meta.get("format") != FORMAT or "model" not in meta:
                raise VisionKitError(f"{file}: is no gallery index; make one with `visionkit index`")
            names = os.fsdecode(tensors.get_tensor("paths").tobytes())
            stamps = tensors.get_tensor("stamps")
        features = _map_features(file)
        digest, weights = meta["digest"], meta["weights"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise VisionKitError(f"{file}: cannot be read as a gallery index (damaged?); make the index again") from error
    paths = names.split("\0") if names else []
    if features.ndim != 2 or len(features) != len(paths):
        raise VisionKitError(
            f"{file}: damaged, it holds {len(paths)} paths for features of shape {features.shape}; index again"
        )
    if stamps.dtype != np.int64 or stamps.shape != (len(paths), 2):
        raise VisionKitError(
            f"{file}: damaged, it holds {len(paths)} paths for stamps of shape {stamps.shape}; index again"
        )
    return Part(None, paths, stamps, file, digest), (meta["model"], weights)


def _map_features(file: Path) -> np.ndarray:
    """Map the tensor ``features``: safetensors is 8 bytes of header length, a JSON header, then the data."""
    with open(file, "rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        entry = json.loads(opened.read(length))["features"]
    if entry["dtype"] != "F32":
        raise ValueError(f"features of type {entry['dtype']}")
    if 0 in entry["shape"]:
        return np.zeros(entry["shape"], np.float32)  # nothing to map
    return np.memmap(file, np.float32, "r", 8 + length + entry["data_offsets"][0], tuple(entry["shape"]))
