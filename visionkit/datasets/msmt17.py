"""MSMT17 (Wei et al., CVPR 2018), versions 1 and 2."""

import os
import re
from pathlib import Path
from typing import Any

from visionkit.datasets.base import ReIDDataset, Sample
from visionkit.datasets.lists import read_lines
from visionkit.errors import VisionKitError
from visionkit.registry import DATASETS

VERSIONS = {"MSMT17_V1": ("train", "test"), "MSMT17_V2": ("mask_train_v2", "mask_test_v2")}


@DATASETS.register_module()
class MSMT17(ReIDDataset):
    """MSMT17: 4,101 people, 15 cameras, lists of lines like ``0000/0000_000_01_0303morning_0008_0.jpg 0``.

    Version 1 keeps its images in ``train`` and ``test``, version 2 (faces blurred) in ``mask_train_v2`` and
    ``mask_test_v2``; which one it is shows in the tree. Here 0 is a person like any other.

    Args:
        include_val: Train on train + val, as CORE-ReID does (32,621 images); False for the 30,248 of list_train.txt.
        args, kwargs: See :class:`ReIDDataset`.
    """

    folder = "MSMT17_V1"
    published = dict(train=((1041, 32621), (1041, 30248)), query=((3060, 11659),), gallery=((3060, 82161),))
    ask = "its authors (https://www.pkuvmc.com/dataset.html)"
    card = "msmt17"

    def __init__(self, *args: Any, include_val: bool = True, **kwargs: Any) -> None:
        self.include_val = include_val
        super().__init__(*args, **kwargs)

    def find_root(self, root: Path) -> Path:
        """The folder that holds the lists; it also settles which version the tree is."""
        found = [
            version
            for version, parts in VERSIONS.items()
            if any((place / part).is_dir() for place in (root, root / version) for part in parts)
        ]
        if len(found) > 1:
            raise VisionKitError(f"MSMT17: {root} holds versions 1 and 2; give the folder of the one you mean")
        self.folder = found[0] if found else "MSMT17_V1"
        self.image_folders = VERSIONS[self.folder]
        return super().find_root(root)

    def tree(self) -> tuple[str, ...]:
        """Two image folders and four lists."""
        return (*self.image_folders, *(f"list_{part}.txt" for part in ("train", "val", "query", "gallery")))

    def scan(self, split: str) -> list[Sample]:
        """Rows of the split's lists."""
        parts = (["train", "val"] if self.include_val else ["train"]) if split == "train" else [split]
        folder = self.root / self.image_folders[0 if split == "train" else 1]
        return [
            self._sample(line, place, folder)
            for part in parts
            for line, place in read_lines(self.root / f"list_{part}.txt")
        ]

    def _sample(self, line: str, place: str, folder: Path) -> Sample:
        match = re.fullmatch(r"(\S+) +(\d+)", line)
        camera = re.match(r"\d+_\d+_(\d+)_", os.path.basename(match[1])) if match else None
        if camera is None:
            raise VisionKitError(
                f"{place}: expected `0000/0000_000_<camera>_<...>.jpg <pid>`, found {line[:60]!r}; restore the list"
            )
        return Sample(str(folder / match[1]), int(match[2]), int(camera[1]) - 1)
