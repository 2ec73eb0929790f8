"""PKU VehicleID (Liu et al., CVPR 2016) and its protocol of ten random galleries."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionkit.checks import check_choice
from visionkit.datasets.base import ReIDDataset, Sample
from visionkit.datasets.lists import read_lines
from visionkit.errors import VisionKitError
from visionkit.registry import DATASETS

NUM_TRIALS = 10


@DATASETS.register_module()
class VehicleID(ReIDDataset):
    """VehicleID: lists of lines ``<image> <vehicle>`` and no cameras.

    Test images of a subset are divided anew in each of ten trials: one random image of every vehicle makes the
    gallery, the rest are queries. Queries have camera 0 and gallery images camera 1, so no match is filtered out;
    train images have camera 0. Scores are averages over the trials: :meth:`trial_roles` gives all ten divisions of
    the same images, so that features are extracted once.

    Args:
        subset: Test vehicles: 800, 1600 or 2400.
        trial: Number of the division into query and gallery, 0 to 9, which also seeds it.
        args, kwargs: See :class:`ReIDDataset`.
    """

    folder = "VehicleID_V1.0"
    ask = "its authors (https://www.pkuml.org/resources/pku-vehicleid.html)"
    card = "vehicle_id"
    images_of_subset = {800: 6532, 1600: 11395, 2400: 17638}

    def __init__(self, *args: Any, subset: int = 800, trial: int = 0, **kwargs: Any) -> None:
        check_choice("VehicleID", self.images_of_subset, subset=subset)
        if trial not in range(NUM_TRIALS):
            raise VisionKitError(f"VehicleID: trial={trial!r}: expected 0 to {NUM_TRIALS - 1}")
        self.subset, self.trial = subset, trial
        self.published = dict(
            train=((13164, 113346), (13134, 110178)),
            query=((subset, self.images_of_subset[subset]),),
            gallery=((subset, subset),),
        )
        super().__init__(*args, **kwargs)

    def tree(self) -> tuple[str, ...]:
        """The image folder and two lists."""
        return "image", "train_test_split/train_list.txt", f"train_test_split/test_list_{self.subset}.txt"

    def scan(self, split: str) -> list[Sample]:
        """Rows of the train list, or this trial's part of the test list."""
        rows = self._rows("train_list" if split == "train" else f"test_list_{self.subset}")
        if split == "train":
            return rows
        role = 0 if split == "query" else 1
        roles = divide([row.pid for row in rows], self.trial)
        return [row._replace(camid=role) for row, of_row in zip(rows, roles) if of_row == role]

    def _rows(self, name: str) -> list[Sample]:
        rows = []
        for line, place in read_lines(self.root / "train_test_split" / f"{name}.txt"):
            fields = line.split()
            if len(fields) != 2 or not fields[1].isdigit():
                raise VisionKitError(f"{place}: expected `<image> <vehicle>`, found {line[:60]!r}; restore the list")
            rows.append(Sample(str(self.root / "image" / f"{Path(fields[0]).stem}.jpg"), int(fields[1]), 0))
        return rows

    def trial_roles(self, paths: Sequence[str]) -> np.ndarray:
        """Roles (10, len(paths)) of test images in the ten trials: 0 query, 1 gallery."""
        rows = self._rows(f"test_list_{self.subset}")
        order = {row.path: i for i, row in enumerate(rows)}
        trials = np.stack([divide([row.pid for row in rows], trial) for trial in range(NUM_TRIALS)])
        return trials[:, [order[path] for path in paths]]


def divide(pids: Sequence[int], seed: int) -> np.ndarray:
    """Roles (N,) of test images: 1 (gallery) for one random image of each identity, 0 (query) for the rest."""
    pids = np.asarray(pids)
    shuffled = np.random.default_rng(seed).permutation(len(pids))
    _, first = np.unique(pids[shuffled], return_index=True)
    roles = np.zeros(len(pids), dtype=np.int64)
    roles[shuffled[first]] = 1
    return roles
