"""A gallery index: features of images with their paths, made by one model, on the disk and searched from there.

An index is a folder of parts. Each part is a safetensors file, written beside and renamed, that names the model; adding
images writes one more part. Features stay in their files and are read as the search goes, so memory stays small.
"""

import hashlib
import json
import os
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visionkit.errors import VisionKitError
from visionkit.extras import require
from visionkit.reid.knn import nearest_neighbours

FORMAT = "visionkit-gallery-1"
APPROXIMATE = ("hnsw", "ivf")
BLOCK = 65536


class Match(NamedTuple):
    """A gallery image and its Euclidean distance from the query."""

    path: str
    distance: float


class Part(NamedTuple):
    """Features (N, D) float32, possibly memory-mapped, and the N images they belong to."""

    features: np.ndarray
    paths: list[str]


class GalleryIndex:
    """Features of a gallery, all of one model.

    Args:
        model: the model's name, see :func:`visionkit.reid.rebuild.fingerprint`.
        weights: the checkpoint that the model came from, for the reader and for `visionkit search`.
    """

    def __init__(self, model: str, weights: str = "") -> None:
        self.model, self.weights = model, weights
        self.parts: list[Part] = []
        self.folder: Path | None = None
        self._saved = 0

    def __len__(self) -> int:
        return sum(len(part.paths) for part in self.parts)

    @property
    def paths(self) -> list[str]:
        """All images, in the order in which they were added."""
        return [path for part in self.parts for path in part.paths]

    def add(self, features: np.ndarray, paths: Sequence[str]) -> None:
        """Add images.

        Args:
            features: (N, D).
            paths: N file names.

        Raises:
            VisionKitError: another number of paths, another width than the index has, or values that are not finite.
        """
        features = np.ascontiguousarray(features, dtype=np.float32)
        if features.ndim != 2 or len(features) != len(paths):
            raise VisionKitError(f"gallery index: {len(paths)} paths for features of shape {features.shape}")
        if self.parts and features.shape[1] != self.parts[0].features.shape[1]:
            wanted = self.parts[0].features.shape[1]
            raise VisionKitError(f"gallery index: holds {wanted}-d features, got {features.shape[1]}-d ones")
        if not np.isfinite(features).all():
            raise VisionKitError("gallery index: features hold NaN or infinite values; check the model's weights")
        if len(paths):
            self.parts.append(Part(features, [str(path) for path in paths]))

    def save(self, folder: str | Path) -> Path:
        """Write the parts that the folder does not hold yet.

        Raises:
            VisionKitError: the folder holds another index, or cannot be written.
        """
        folder = Path(folder)
        if self.folder is None or self.folder.resolve() != folder.resolve():
            if _part_files(folder):
                raise VisionKitError(f"{folder}: already holds an index; name another folder, or load that one and add")
            self._saved = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(self._saved, len(self.parts)):
                _write_part(folder / f"part_{number:05d}.safetensors", self.parts[number], self.model, self.weights)
                self._saved = number + 1
        except OSError as error:
            raise VisionKitError(f"{folder}: cannot be written ({error.strerror}); check the disk") from error
        self.folder = folder
        return folder

    @classmethod
    def load(cls, folder: str | Path, model: str | None = None) -> "GalleryIndex":
        """Open an index; its features stay on the disk.

        Args:
            folder: what :meth:`save` wrote.
            model: the model that queries will come from.

        Raises:
            VisionKitError: no index, a damaged one, or one of another model.
        """
        files = _part_files(Path(folder))
        if not files:
            raise VisionKitError(f"{folder}: holds no gallery index; make one with `visionkit index`")
        parts, owners = zip(*(_read_part(file) for file in files))
        index = cls(*owners[0])
        for file, part, (owner, _) in zip(files, parts, owners):
            if owner != index.model or part.features.shape[1] != parts[0].features.shape[1]:
                raise VisionKitError(f"{file}: was made by {owner}, the rest of the index by {index.model}; remove it")
        index.parts, index.folder, index._saved = list(parts), Path(folder), len(parts)
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

    def search(self, query: np.ndarray, topk: int = 10, approximate: str | None = None) -> list[list[Match]]:
        """The nearest images of each query.

        Args:
            query: features (Q, D).
            topk: how many images.
            approximate: None for the exact answer, or ``"hnsw"`` or ``"ivf"`` (faiss): much faster on a million
                images, and may miss a few. What faiss builds is kept in the index's folder.
        """
        if len(self) == 0:
            raise VisionKitError(f"{self.folder or 'gallery index'}: is empty; add images before searching")
        query = np.ascontiguousarray(query, dtype=np.float32)
        found = self._exact(query, topk) if approximate is None else self._approximate(query, topk, approximate)
        paths, answers = self.paths, []
        for indices, distances in zip(*found):
            answers.append([Match(paths[i], float(d) ** 0.5) for i, d in zip(indices, distances) if i >= 0])
        return answers

    def _exact(self, query: np.ndarray, topk: int) -> tuple[np.ndarray, np.ndarray]:
        indices, distances, first = [], [], 0
        for part in self.parts:
            found = nearest_neighbours(query, part.features, topk)
            indices.append(found.indices + first)
            distances.append(found.distances)
            first += len(part.paths)
        index, distance = np.concatenate(indices, 1), np.concatenate(distances, 1)
        order = np.argsort(distance, axis=1, kind="stable")[:, :topk]
        return np.take_along_axis(index, order, 1), np.take_along_axis(distance, order, 1)

    def _approximate(self, query: np.ndarray, topk: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        if kind not in APPROXIMATE:
            raise VisionKitError(f"approximate: expected one of {', '.join(APPROXIMATE)}, got {kind!r}")
        distances, indices = self._faiss(kind).search(query, min(topk, len(self)))
        return indices, np.maximum(distances, 0)

    def _faiss(self, kind: str):  # noqa: ANN202 - a faiss index
        """faiss's structure over all features: the kept one with what was added since, or a new one."""
        index = _read_faiss(self.folder, kind)
        if index is None or index.ntotal > len(self) or index.d != self.parts[0].features.shape[1]:
            index = _new_faiss(kind, self.parts)
        if index.ntotal < len(self):
            first = 0
            for part in self.parts:
                for start in range(max(index.ntotal - first, 0), len(part.paths), BLOCK):
                    index.add(np.ascontiguousarray(part.features[start : start + BLOCK]))
                first += len(part.paths)
            if self.folder is not None and self._saved == len(self.parts):
                _write_faiss(index, self.folder, kind)
        return index


def _part_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("part_*.safetensors"))


def _write_part(file: Path, part: Part, model: str, weights: str) -> None:
    from safetensors.numpy import save_file

    names = np.frombuffer("\0".join(part.paths).encode("utf-8", "surrogateescape"), np.uint8)
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        tensors = dict(features=np.ascontiguousarray(part.features), paths=names)
        save_file(tensors, beside, dict(format=FORMAT, model=model, weights=weights))
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


def _read_part(file: Path) -> tuple[Part, tuple[str, str]]:
    """A part with its features mapped from the file, and the model and weights that it names."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as tensors:  # checks the header against the file's size
            meta = tensors.metadata() or {}
            names = tensors.get_tensor("paths").tobytes().decode("utf-8", "surrogateescape").split("\0")
        if meta.get("format") != FORMAT or "model" not in meta:
            raise VisionKitError(f"{file}: is no gallery index; make one with `visionkit index`")
        features = _map_features(file)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise VisionKitError(f"{file}: cannot be read as a gallery index (damaged?); make the index again") from error
    if features.ndim != 2 or len(features) != len(names):
        raise VisionKitError(f"{file}: damaged, it holds {len(names)} paths for features of shape {features.shape}")
    return Part(features, names), (meta["model"], meta.get("weights", ""))


def _map_features(file: Path) -> np.ndarray:
    """Map the tensor ``features``: safetensors is 8 bytes of header length, a JSON header, then the data."""
    with open(file, "rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        entry = json.loads(opened.read(length))["features"]
    if entry["dtype"] != "F32":
        raise ValueError(f"features of type {entry['dtype']}")
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
    index.train(np.concatenate([part.features[::step] for part in parts]))
    return index


def _write_faiss(index: object, folder: Path, kind: str) -> None:
    file = folder / f"{kind}.faiss"
    beside = folder / f".{file.name}.{os.getpid()}.tmp"
    try:
        require("faiss", "faiss").write_index(index, str(beside))
        checksum = _sha256(beside)
        os.replace(beside, file)
        beside.write_text(checksum)
        os.replace(beside, file.with_name(file.name + ".sha256"))
    finally:
        beside.unlink(missing_ok=True)


def _read_faiss(folder: Path | None, kind: str):  # noqa: ANN202 - a faiss index
    """The kept structure; None where there is none, or its checksum tells that it is not what was written."""
    file = folder / f"{kind}.faiss" if folder else None
    if file is None or not file.is_file():
        return None
    checksum = file.with_name(file.name + ".sha256")
    if not checksum.is_file() or checksum.read_text(errors="replace") != _sha256(file):
        warnings.warn(f"{file}: damaged, built anew")
        return None
    return require("faiss", "faiss").read_index(str(file))


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def holds_index(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a gallery index."""
    return bool(_part_files(Path(folder)))
