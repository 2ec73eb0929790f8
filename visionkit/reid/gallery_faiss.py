"""faiss's structures over a gallery index, kept in its folder: they find neighbours fast, and may miss a few."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from visionkit.errors import VisionKitError
from visionkit.extras import require
from visionkit.files import beside, sha256_of
from visionkit.reid.gallery_files import Part

APPROXIMATE = ("hnsw", "ivf")
BLOCK = 65536


def structure_over(parts: Sequence[Part], kind: str, folder: Path | None):  # noqa: ANN201 - a faiss index
    """faiss's structure over all features: the kept one with what was added since, or a new one.

    Args:
        parts: of the index.
        kind: one of :data:`APPROXIMATE`.
        folder: of the index, None where it lies in memory alone.
    """
    index = _read(folder, kind, parts) or _new(kind, parts)
    if index.ntotal < sum(len(part.paths) for part in parts):
        first = 0
        for part in parts:
            for start in range(max(index.ntotal - first, 0), len(part.paths), BLOCK):
                index.add(np.ascontiguousarray(part.features[start : start + BLOCK]))
            first += len(part.paths)
        if folder is not None and all(part.file for part in parts):
            _write(index, folder, kind, parts)
    return index


def _new(kind: str, parts: Sequence[Part]):  # noqa: ANN202 - a faiss index
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


def _read(folder: Path | None, kind: str, parts: Sequence[Part]):  # noqa: ANN202 - a faiss index
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


def _write(index: object, folder: Path, kind: str, parts: Sequence[Part]) -> None:
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
