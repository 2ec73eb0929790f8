"""What every re-identification data set shares: its tree, its rows, its labels and its items.

A sub-class says which files it needs and how their names give an identity and a camera; nothing is ever downloaded.
"""

import copy
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch.utils.data import Dataset

from visionkit.checks import check_choice
from visionkit.datasets.images import ImageReader, is_image_name
from visionkit.datasets.styled import styled_samples
from visionkit.datasets.transforms import build_transforms
from visionkit.errors import VisionKitError

SPLITS = ("train", "query", "gallery")


class Sample(NamedTuple):
    """One row: image file, identity and 0-based camera."""

    path: str
    pid: int
    camid: int


class ReIDDataset(Dataset):
    """Base of all re-identification data sets.

    An item is ``dict(image, pid, camid, index, path)``; ``image`` is what the transforms make of a PIL RGB image.
    Train identities are relabelled 0..n-1 in sorted order; query and gallery keep theirs. Identity -1 (junk) is
    dropped; where 0 means distractor it stays in the gallery alone.

    An unreadable file stops an evaluation. In training it is warned about once and another image of the same identity
    takes its place, or the next row when there is none: always the same one.

    Args:
        root: The data set's folder, or the folder that holds it.
        split: "train", "query" or "gallery".
        transforms: Registry dicts (TRANSFORMS) or callables, run in order on a PIL RGB image; None leaves the picture.
        styled: Train only: ``dict(root=..., camera="origin"|"style")`` adds the images ``<stem>_fake_<A>to<B>.*`` of a
            folder, with their origin's identity and with the camera of the origin or, for "style", camera B.
        include_test: Train only: the query and gallery identities join, each with a label of its own.
        cache: None, or "memory" to decode each file once and keep it at ``cache_size``.
        cache_size: (height, width) in pixels of the images in the cache; needed with ``cache="memory"``.

    Raises:
        VisionKitError: a folder or list of the tree is missing, a split is empty, a name cannot be parsed.
    """

    folder = ""  # what the published archive unpacks to
    listed = True  # whether rows that are of no ``folders`` come from a list, whose files must be there
    folders: dict[str, str] = {}  # split -> folder of `<pid>_c<camera>...` files, where the set is laid out so
    published: dict[str, tuple[tuple[int, int], ...]] = {}  # split -> (identities, images), alternatives if disputed
    ask = ""  # who gives the data set out
    card = ""  # its page under datasets/
    stand_in = ""  # what makes a tree like it of drawn images
    zero_is_distractor = False

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        transforms: Sequence[dict | Callable] | None = None,
        *,
        styled: dict | None = None,
        include_test: bool = False,
        cache: str | None = None,
        cache_size: Sequence[int] | None = None,
    ) -> None:
        self.name = type(self).__name__
        check_choice(self.name, SPLITS, split=split)
        if split != "train" and (styled or include_test):
            raise VisionKitError(f"{self.name}: styled and include_test belong to the train split, not to {split}")
        self.split = split
        self.root = self.find_root(Path(root))
        self.transforms = build_transforms(transforms)
        samples = self._checked(split)
        if split == "train":
            samples = relabel(samples, self._test_samples() if include_test else [])
            if styled:
                samples = samples + styled_samples(samples, self.name, **_styled_options(self.name, styled))
        self.samples = samples
        self.pids = [sample.pid for sample in samples]
        self.camids = [sample.camid for sample in samples]
        self.num_pids = len(set(self.pids))
        self.reader = ImageReader([sample.path for sample in samples], cache, cache_size)

    # What sub-classes say about themselves

    def tree(self) -> tuple[str, ...]:
        """Folders and files that must exist, relative to the root."""
        return tuple(dict.fromkeys(self.folders.values()))

    def scan(self, split: str) -> list[Sample]:
        """Rows of one split as they lie on the disk: raw identities, 0-based cameras, junk included."""
        folder = self.root / self.folders[split]
        return [Sample(path, *self.parse(path)) for path in list_images(folder)]

    def parse(self, path: str) -> tuple[int, int]:
        """Identity and 0-based camera from a name like ``0002_c1s1_000451_03.jpg``; another one is an error."""
        match = re.match(r"(-?\d+)_c(\d+)", os.path.basename(path))
        if match is None:
            raise VisionKitError(f"{path}: {self.name} names start with <pid>_c<camera>; rename or remove the file")
        return int(match[1]), int(match[2]) - 1

    # The common part

    def find_root(self, root: Path) -> Path:
        """The folder that holds the tree: ``root`` or ``root/<folder>``; else an error that says what is missing."""
        if not root.is_dir():
            raise VisionKitError(f"{self.name}: root {root} is no folder; {self._where_from()}")
        places = [root, root / self.folder]
        lacking = [[part for part in self.tree() if not (place / part).exists()] for place in places]
        best = min(range(len(places)), key=lambda i: len(lacking[i]))
        if lacking[best]:
            raise VisionKitError(f"{self.name}: {places[best]} lacks {', '.join(lacking[best])}; {self._where_from()}")
        return places[best]

    def _where_from(self) -> str:
        parts = ", ".join(self.tree())
        stand_in = f", or make its stand-in: {self.stand_in}" if self.stand_in else ""
        where = f"see datasets/{self.card}.md{stand_in}"
        return f"expected {self.folder or 'a folder'} with {parts}, from {self.ask}; {where}"

    def _checked(self, split: str) -> list[Sample]:
        dropped = (-1, 0) if self.zero_is_distractor and split != "gallery" else (-1,)
        samples = [sample for sample in self.scan(split) if sample.pid not in dropped]
        if not samples:
            raise VisionKitError(f"{self.name}: the {split} split under {self.root} is empty; {self._where_from()}")
        if self.listed and not self.folders:
            self._check_files(samples)
        found = (len({sample.pid for sample in samples}), len(samples))
        expected = self.published.get(split)
        if expected and found not in expected and not self._is_synthetic():
            warnings.warn(
                f"{self.name} {split} under {self.root}: {found[0]} identities in {found[1]} images, published with "
                f"{expected[0][0]} in {expected[0][1]} (right for a subset)",
                stacklevel=4,
            )
        return samples

    def _is_synthetic(self) -> bool:
        """Whether the tree is a stand-in that datasets/synthesize_reid.py wrote: it leaves a note beside it."""
        return any((place / "SYNTHETIC.txt").exists() for place in (self.root, self.root.parent))

    def _check_files(self, samples: list[Sample]) -> None:
        """Files that a list promises must be there: a half unpacked archive should not surface after an hour."""
        missing = [sample.path for sample in samples if not os.path.exists(sample.path)]
        if missing:
            raise VisionKitError(
                f"{self.name}: {len(missing)} of {len(samples)} listed images are missing, first {missing[0]}; "
                "unpack the whole archive"
            )

    def _test_samples(self) -> list[Sample]:
        """Query and gallery rows without distractors; a file that lies in both folders counts once."""
        rows = {}
        for split in ("query", "gallery"):
            folder = str(self.root / self.folders.get(split, ""))
            for sample in self._checked(split):
                if sample.pid != 0 or not self.zero_is_distractor:
                    rows.setdefault(sample.path.removeprefix(folder), sample)
        return list(rows.values())

    def with_transforms(self, transforms: Sequence[dict | Callable] | None) -> "ReIDDataset":
        """The same rows, files and cache under other transforms."""
        view = copy.copy(self)
        view.transforms = build_transforms(transforms)
        return view

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        image, row = self.load(index, self.pids)
        sample = self.samples[row]
        return dict(image=image, pid=sample.pid, camid=sample.camid, index=index, path=sample.path)

    def load(self, index: int, labels: Sequence[int]) -> tuple[Image.Image, int]:
        """Transformed image of a row and the row it came from, which differs when the file is unreadable in training.

        Args:
            index: Row asked for.
            labels: (N,) labels that say which rows may stand in for each other; those labelled -1 only do
                so among themselves.

        Raises:
            VisionKitError: the file is unreadable in an evaluation, or all are in training.
        """
        for row in _stand_ins(index, labels):
            try:
                image = self.reader.read(row)
            except VisionKitError as error:
                if self.split != "train":
                    raise
                self.reader.warn_once(row, error)
                continue
            for transform in self.transforms:
                image = transform(image)
            return image, row
        raise VisionKitError(f"{self.name}: no image under {self.root} can be read; restore the files")


def _stand_ins(index: int, labels: Sequence[int]) -> Iterator[int]:
    """The row itself, then rows of its label, then all labelled rows; each time the next one first, then round."""
    yield index
    following = [(index + step) % len(labels) for step in range(1, len(labels))]
    yield from (row for row in following if labels[row] == labels[index])
    yield from (row for row in following if labels[row] != labels[index] and labels[row] >= 0)


def relabel(train: list[Sample], test: list[Sample]) -> list[Sample]:
    """Identities to 0..n-1: train in sorted order, then test in sorted order, never merged by an equal number."""
    keyed = [((0, sample.pid), sample) for sample in train] + [((1, sample.pid), sample) for sample in test]
    labels = {key: label for label, key in enumerate(sorted({key for key, _ in keyed}))}
    return [sample._replace(pid=labels[key]) for key, sample in keyed]


def list_images(folder: Path) -> list[str]:
    """Image files directly in a folder, sorted by name; hidden files are passed over."""
    with os.scandir(folder) as entries:
        return sorted(entry.path for entry in entries if is_image_name(entry.name))


def _styled_options(name: str, styled: dict) -> dict:
    unknown = set(styled) - {"root", "camera"}
    if unknown or "root" not in styled:
        raise VisionKitError(f'{name}: styled={dict(styled)!r}: expected dict(root=FOLDER, camera="origin"|"style")')
    return dict(styled)
