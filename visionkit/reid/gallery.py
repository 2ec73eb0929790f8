"""A gallery index: features of images with their paths, made by one model, on the disk and searched from there.

An index is a folder of parts. Each part is a safetensors file, written beside and renamed, that names the model; adding
images writes one more part, and dropping some writes their parts anew. Features stay in their files and are read as the
search goes, so memory stays small.
"""

import hashlib
import json
import os
import re
import struct
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import AcquireReturnProxy, FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from visionkit.errors import VisionKitError
from visionkit.extras import require
from visionkit.files import beside, cannot_write, sha256_of
from visionkit.reid.distances import check_pair
from visionkit.reid.knn import nearest_neighbours

FORMAT = "visionkit-gallery-1"
APPROXIMATE = ("hnsw", "ivf")
BLOCK = 65536
SEARCHED_AT_ONCE = 16384  # rows of small parts
UNKNOWN = (-1, -1)
LOCK = ".lock"


class Match(NamedTuple):
    """A gallery image and its Euclidean distance from the query."""

    path: str
    distance: float


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


class GalleryIndex:
    """Features of a gallery, all of one model.

    To open one checks the form of its parts, not each byte: to hash 2 GB of features takes 4 seconds, as long as to
    search them, where opening takes 0.03. So values that changed on the disk are not noticed.

    Args:
        model: the model's name, see :func:`visionkit.reid.rebuild.model_name`.
        weights: the checkpoint that the model came from, for the reader and for `visionkit search`.
    """

    def __init__(self, model: str, weights: str = "") -> None:
        self.model, self.weights = model, weights
        self.parts: list[Part] = []
        self.folder: Path | None = None

    def __len__(self) -> int:
        return sum(len(part.paths) for part in self.parts)

    @property
    def paths(self) -> list[str]:
        """All images, in the order in which they were added."""
        return [path for part in self.parts for path in part.paths]

    @property
    def stamps(self) -> dict[str, tuple[int, int]]:
        """What :func:`stamp_of` said of each image when it was added; :data:`UNKNOWN` where it was not asked."""
        return {path: tuple(stamp) for part in self.parts for path, stamp in zip(part.paths, part.stamps.tolist())}

    def add(self, features: np.ndarray, paths: Sequence[str], stamps: Sequence[tuple[int, int]] | None = None) -> None:
        """Add images.

        Args:
            features: (N, D).
            paths: N file names.
            stamps: N results of :func:`stamp_of`, taken before the images were read.

        Raises:
            VisionKitError: another number of paths, another width than the index has, or values that are not finite.
        """
        features = np.ascontiguousarray(features, dtype=np.float32)
        if features.ndim != 2 or len(features) != len(paths):
            raise VisionKitError(
                f"gallery index: {len(paths)} paths for features of shape {features.shape}; give a path each"
            )
        if self.parts and features.shape[1] != self.parts[0].features.shape[1]:
            wanted = self.parts[0].features.shape[1]
            raise VisionKitError(
                f"gallery index: holds {wanted}-d features, got {features.shape[1]}-d ones; use one model"
            )
        if not np.isfinite(features).all():
            raise VisionKitError("gallery index: features hold NaN or infinite values; check the model's weights")
        if len(paths):
            stamps = np.array([UNKNOWN] * len(paths) if stamps is None else stamps, dtype=np.int64)
            self.parts.append(Part(features, [str(path) for path in paths], stamps))

    def make_absolute(self) -> None:
        """Name the files that no part on the disk holds yet by their absolute paths."""
        for place, part in enumerate(self.parts):
            if part.file is None:
                paths = [os.path.abspath(path) if os.path.exists(path) else path for path in part.paths]
                self.parts[place] = part._replace(paths=paths)

    def drop(self, paths: Collection[str]) -> None:
        """Forget images. Parts on the disk are written anew, one by one; the last one stays, to name the model.

        Raises:
            VisionKitError: the folder cannot be written.
        """
        for part in list(self.parts):
            kept = [row for row, path in enumerate(part.paths) if path not in paths]
            if len(kept) < len(part.paths):
                self._replace(part, kept)

    def _replace(self, part: Part, rows: list[int]) -> None:
        """Keep only some rows of a part."""
        place = next(number for number, each in enumerate(self.parts) if each is part)
        if rows or len(self.parts) == 1:
            left = Part(part.features[rows], [part.paths[row] for row in rows], part.stamps[rows])
            self.parts[place] = self._write(left, part.file) if part.file else left
            return
        with _naming_write_errors(self.folder):
            if part.file:
                part.file.unlink()
        del self.parts[place]

    def save(self, folder: str | Path) -> Path:
        """Write the parts that the folder does not hold yet. Inside of :func:`writing` no other process interferes.

        Raises:
            VisionKitError: the folder holds another index, or cannot be written.
        """
        folder = Path(folder)
        if self.folder is None or self.folder.resolve() != folder.resolve():
            if _part_files(folder):
                raise VisionKitError(f"{folder}: already holds an index; name another folder, or load that one and add")
            self.parts = [part._replace(held=part.features, file=None, digest="") for part in self.parts]
        held = [part.file.name for part in self.parts if part.file]
        if held != [file.name for file in _part_files(folder)]:
            raise VisionKitError(f"{folder}: was changed since it was loaded; load it again and add")
        with _naming_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        number = int(held[-1][5:10]) + 1 if held else 0
        for place in range(len(held), len(self.parts)):
            file = folder / f"part_{number + place - len(held):05d}.safetensors"
            self.parts[place] = self._write(self.parts[place], file)
        return folder

    def _write(self, part: Part, file: Path) -> Part:
        """The part as it lies on the disk: its features no longer need memory."""
        _write_part(file, part, self.model, self.weights)
        return _read_part(file)[0]

    @classmethod
    def load(cls, folder: str | Path, model: str | None = None) -> "GalleryIndex":
        """Open an index; its features stay on the disk.

        Args:
            folder: folder that :meth:`save` wrote.
            model: the model that queries will come from.

        Raises:
            VisionKitError: no index, a damaged one, or one of another model.
        """
        files = _part_files(Path(folder))
        if not files:
            raise VisionKitError(f"{folder}: holds no gallery index; make one with `visionkit index`")
        parts, owners = zip(*(_read_part(file) for file in files))
        index = cls(*owners[0])
        width = parts[0].features.shape[1]
        for file, part, (owner, _) in zip(files, parts, owners):
            if owner != index.model or part.features.shape[1] != width:
                raise VisionKitError(f"{file}: was made by {owner}, the rest of the index by {index.model}; remove it")
        index.parts, index.folder = list(parts), Path(folder)
        if model is not None:
            index.check_model(model)
        return index

    def check_model(self, model: str) -> None:
        """Refuse a query of another model: distances between two models' features mean nothing."""
        if model != self.model:
            raise VisionKitError(
                f"{self.folder or 'gallery index'}: was made by {self.model}, the query's model is {model}; "
                "use that model or index the gallery again"
            )

    def search(
        self, query: np.ndarray, topk: int = 10, approximate: str | None = None, device: str | None = None
    ) -> list[list[Match]]:
        """The nearest images of each query.

        Args:
            query: features (Q, D).
            topk: number of images for each query.
            approximate: None for the exact answer, or ``"hnsw"`` or ``"ivf"`` (faiss): much faster on a million
                images, and may miss a few. What faiss builds is kept in the index's folder.
            device: device of the exact search; by default a GPU where there is one.

        Raises:
            VisionKitError: an empty index, a query of another width or with values that are not finite, or a wrong
                option.
        """
        if len(self) == 0:
            raise VisionKitError(f"{self.folder or 'gallery index'}: is empty; add images before searching")
        if topk < 1:
            raise VisionKitError(f"topk={topk}: expected at least 1")
        query = np.ascontiguousarray(query, dtype=np.float32)
        check_pair(query, next(part.features for part in self.parts if part.paths))
        if not np.isfinite(query).all():
            raise VisionKitError("query features hold NaN or infinite values; check the model's weights")
        exact = approximate is None
        found = self._exact(query, topk, device) if exact else self._approximate(query, topk, approximate)
        paths, answers = self.paths, []
        for indices, distances in zip(*found):
            answers.append([Match(paths[i], float(d) ** 0.5) for i, d in zip(indices, distances) if i >= 0])
        return answers

    def _exact(self, query: np.ndarray, topk: int, device: str | None) -> tuple[np.ndarray, np.ndarray]:
        device = "cpu" if str(device).startswith("mps") else device  # which has no float64
        indices, distances, first = [], [], 0
        for features in self._blocks():
            found = nearest_neighbours(query, features, topk, device=device)
            indices.append(found.indices + first)
            distances.append(found.distances)
            first += len(features)
        index, distance = np.concatenate(indices, 1), np.concatenate(distances, 1)
        order = np.argsort(distance, axis=1, kind="stable")[:, :topk]
        return np.take_along_axis(index, order, 1), np.take_along_axis(distance, order, 1)

    def _blocks(self) -> Iterator[np.ndarray]:
        """All features in turn. Small parts come together: a search has some work for each block, whatever its size."""
        small: list[Part] = []
        for part in self.parts:
            if small and sum(len(each.paths) for each in small) + len(part.paths) > SEARCHED_AT_ONCE:
                yield _joined(small)
                small = []
            if part.paths:
                small.append(part)
        yield _joined(small)

    def _approximate(self, query: np.ndarray, topk: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        if kind not in APPROXIMATE:
            raise VisionKitError(f"approximate: expected one of {', '.join(APPROXIMATE)}, got {kind!r}")
        distances, indices = self._faiss(kind).search(query, min(topk, len(self)))
        return indices, np.maximum(distances, 0)

    def _faiss(self, kind: str):  # noqa: ANN202 - a faiss index
        """faiss's structure over all features: the kept one with what was added since, or a new one."""
        index = _read_faiss(self.folder, kind, self.parts) or _new_faiss(kind, self.parts)
        if index.ntotal < len(self):
            first = 0
            for part in self.parts:
                for start in range(max(index.ntotal - first, 0), len(part.paths), BLOCK):
                    index.add(np.ascontiguousarray(part.features[start : start + BLOCK]))
                first += len(part.paths)
            if self.folder is not None and all(part.file for part in self.parts):
                _write_faiss(index, self.folder, kind, self.parts)
        return index


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
    with _naming_write_errors(folder):
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
def _naming_write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(folder, error) from error


def _part_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"part_{'[0-9]' * 5}.safetensors"))


def _write_part(file: Path, part: Part, model: str, weights: str) -> None:
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


def _read_part(file: Path) -> tuple[Part, tuple[str, str]]:
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


def _joined(parts: Sequence[Part]) -> np.ndarray:
    """Features of parts, one below the other; no two files are open at once."""
    if len(parts) == 1:
        return parts[0].features
    joined = np.empty((sum(len(part.paths) for part in parts), parts[0].features.shape[1]), np.float32)
    start = 0
    for part in parts:
        joined[start : start + len(part.paths)] = part.features
        start += len(part.paths)
    return joined


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


def _new_faiss(kind: str, parts: Sequence[Part]):  # noqa: ANN202 - a faiss index
    faiss = require("faiss", "faiss")
    dimension = parts[0].features.shape[1]
    if kind == "hnsw":
        return faiss.IndexHNSWFlat(dimension, 32)
    number = sum(len(part.paths) for part in parts)
    lists = max(1, min(int(4 * number**0.5), number // 39))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(dimension), dimension, lists)
    index.nprobe = min(lists, 32)
    step = max(1, number // (64 * lists))  # faiss learns its lists from about 64 images each
    index.train(np.concatenate([np.array(part.features[::step]) for part in parts]))
    return index


def _write_faiss(index: object, folder: Path, kind: str, parts: Sequence[Part]) -> None:
    """Keep a structure; beside it its checksum, and a line for each part that is in it."""
    file = folder / f"{kind}.faiss"
    try:
        with beside(file) as temporary:
            require("faiss", "faiss").write_index(index, str(temporary))
            lines = [sha256_of(temporary), *(part.digest for part in parts)]
        with beside(file.with_name(file.name + ".sha256")) as temporary:
            temporary.write_text("\n".join(lines))
    except (OSError, VisionKitError, RuntimeError):  # faiss knows RuntimeError only; the search can do without
        warnings.warn(f"{folder}: cannot be written, so that each search builds {kind} anew; check its permissions")


def _read_faiss(folder: Path | None, kind: str, parts: Sequence[Part]):  # noqa: ANN202 - a faiss index
    """The kept structure; None where there is none, it is not what was written, or not of the index's first parts."""
    file = folder / f"{kind}.faiss" if folder else None
    if file is None or not file.is_file():
        return None
    lines = file.with_name(file.name + ".sha256")
    checksum, *digests = lines.read_text(errors="replace").split("\n") if lines.is_file() else [""]
    if checksum != sha256_of(file):
        warnings.warn(f"{file}: damaged, built anew")
        return None
    if not digests or digests != [part.digest for part in parts[: len(digests)]]:
        return None
    try:
        return require("faiss", "faiss").read_index(str(file))
    except (RuntimeError, MemoryError):  # such as one that a newer faiss wrote
        warnings.warn(f"{file}: cannot be read by the faiss that is installed, built anew")
        return None


def holds_index(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a gallery index."""
    return bool(_part_files(Path(folder)))
