"""A gallery index: features of images with their paths, made by one model, on the disk and searched from there.

An index is a folder of parts. Each part is a safetensors file, written beside and renamed, that names the model; adding
images writes one more part, and dropping some writes their parts anew. Features stay in their files and are read as the
search goes, so memory stays small.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visionkit.errors import VisionKitError
from visionkit.reid.distances import check_pair
from visionkit.reid.gallery_faiss import APPROXIMATE, structure_over
from visionkit.reid.gallery_files import UNKNOWN, Part, naming_write_errors, part_files, read_part, write_part
from visionkit.reid.knn import nearest_neighbours

SEARCHED_AT_ONCE = 16384  # rows of small parts


class Match(NamedTuple):
    """A gallery image and its Euclidean distance from the query."""

    path: str
    distance: float


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
        with naming_write_errors(self.folder):
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
            if part_files(folder):
                raise VisionKitError(f"{folder}: already holds an index; name another folder, or load that one and add")
            self.parts = [part._replace(held=part.features, file=None, digest="") for part in self.parts]
        held = [part.file.name for part in self.parts if part.file]
        if held != [file.name for file in part_files(folder)]:
            raise VisionKitError(f"{folder}: was changed since it was loaded; load it again and add")
        with naming_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        number = int(held[-1][5:10]) + 1 if held else 0
        for place in range(len(held), len(self.parts)):
            file = folder / f"part_{number + place - len(held):05d}.safetensors"
            self.parts[place] = self._write(self.parts[place], file)
        return folder

    def _write(self, part: Part, file: Path) -> Part:
        """The part as it lies on the disk: its features no longer need memory."""
        write_part(file, part, self.model, self.weights)
        return read_part(file)[0]

    @classmethod
    def load(cls, folder: str | Path, model: str | None = None) -> "GalleryIndex":
        """Open an index; its features stay on the disk.

        Args:
            folder: folder that :meth:`save` wrote.
            model: the model that queries will come from.

        Raises:
            VisionKitError: no index, a damaged one, or one of another model.
        """
        files = part_files(Path(folder))
        if not files:
            raise VisionKitError(f"{folder}: holds no gallery index; make one with `visionkit index`")
        parts, owners = zip(*(read_part(file) for file in files))
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
        distances, indices = structure_over(self.parts, kind, self.folder).search(query, min(topk, len(self)))
        return indices, np.maximum(distances, 0)


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
