"""Data sets around a data set: pseudo-labels for training, and query plus gallery for evaluation."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from torch.utils.data import Dataset

from visionkit.datasets.base import ReIDDataset
from visionkit.errors import VisionKitError
from visionkit.registry import DATASETS


@DATASETS.register_module()
class PseudoLabelDataset(Dataset):
    """A train split whose identities are unknown: items carry the labels that a clustering gave.

    Until :meth:`set_labels` all rows are there with pid -1. After it, rows labelled -1 are left out; ``index`` of an
    item always is the row in the wrapped data set. True identities never reach an item, nor decide which image stands
    in for an unreadable one.

    Args:
        dataset: A train :class:`ReIDDataset`, or its config.
    """

    def __init__(self, dataset: ReIDDataset | dict) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        if self.dataset.split != "train":
            raise VisionKitError(
                f"PseudoLabelDataset wraps a train split, not {self.dataset.split}; give split='train'"
            )
        self._use(np.full(len(self.dataset), -1), np.arange(len(self.dataset)))

    def set_labels(self, labels: np.ndarray) -> None:
        """Take new labels, (N,) integers for the N rows of the wrapped data set; -1 leaves a row out.

        Raises:
            VisionKitError: they are of another shape or type, below -1, or -1 all.
        """
        labels = np.asarray(labels)
        if labels.shape != (len(self.dataset),) or not np.issubdtype(labels.dtype, np.integer):
            raise VisionKitError(
                f"pseudo-labels are {labels.dtype} of shape {labels.shape}: expected {len(self.dataset)} integers; if "
                "the target's images changed since the run began, start it anew in another --work-dir"
            )
        if labels.min() < -1 or labels.max() < 0:
            raise VisionKitError(
                f"pseudo-labels run from {labels.min()} to {labels.max()}: expected some >= 0 and -1 for the rest; "
                "if all is noise, let the clustering join more"
            )
        self._use(labels.astype(np.int64), np.flatnonzero(labels >= 0))

    def _use(self, labels: np.ndarray, kept: np.ndarray) -> None:
        self.labels, self.kept = labels.tolist(), kept.tolist()
        self.pids = [self.labels[row] for row in self.kept]
        self.camids = [self.dataset.camids[row] for row in self.kept]
        self.num_pids = max(self.pids) + 1

    def unlabelled(self, transforms: Sequence[dict | Callable]) -> "PseudoLabelDataset":
        """All N rows in order with pid -1 under other transforms: what features are extracted from."""
        return PseudoLabelDataset(self.dataset.with_transforms(transforms))

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, position: int) -> dict:
        index = self.kept[position]
        image, row = self.dataset.load(index, self.labels)
        sample = self.dataset.samples[row]
        return dict(image=image, pid=self.labels[row], camid=sample.camid, index=index, path=sample.path)


@DATASETS.register_module()
class QueryGallery(Dataset):
    """The query split followed by the gallery split of one data set, for one evaluation loader.

    Items are those of the splits with ``index`` counting through both and ``role`` added: 0 query, 1 gallery.
    ``metainfo`` holds the data set's ``name`` and ``trials``: None, or for a protocol of repeated splits (VehicleID)
    an array (trials, len(self)) of roles over the same items, to average over.

    Args:
        dataset: Config of a :class:`ReIDDataset` without its ``split``.
        use_cameras: False where images of the query's own camera count too, as in the metric.

    Raises:
        VisionKitError: no query has an image of its identity in another camera, so nothing could be measured.
    """

    def __init__(self, dataset: dict, use_cameras: bool = True) -> None:
        if "split" in dataset:
            raise VisionKitError("QueryGallery builds both splits itself; leave split out of its dataset")
        self.query, self.gallery = (DATASETS.build(dict(dataset, split=split)) for split in ("query", "gallery"))
        self.samples = self.query.samples + self.gallery.samples
        self.pids, self.camids = self.query.pids + self.gallery.pids, self.query.camids + self.gallery.camids
        self.roles = [0] * len(self.query) + [1] * len(self.gallery)
        trial_roles = getattr(self.query, "trial_roles", None)
        trials = trial_roles([sample.path for sample in self.samples]) if trial_roles else None
        self.metainfo = dict(name=self.query.name, trials=trials)
        self._check_positives(use_cameras)

    def _check_positives(self, use_cameras: bool) -> None:
        cameras = defaultdict(set)
        for pid, camid in zip(self.gallery.pids, self.gallery.camids):
            cameras[pid].add(camid)
        labels = zip(self.query.pids, self.query.camids)
        if not any(cameras[pid] - {camid} if use_cameras else cameras[pid] for pid, camid in labels):
            where = f"{self.query.name} under {self.query.root}: no query identity is in the gallery"
            if use_cameras:
                raise VisionKitError(
                    f"{where} under another camera, so there is nothing to find; check the splits and the camera "
                    "numbers, or set metric=dict(use_cameras=False) where cameras are not known"
                )
            raise VisionKitError(f"{where}, so there is nothing to find; check the splits")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        role = self.roles[index]
        item = self.gallery[index - len(self.query)] if role else self.query[index]
        return dict(item, index=index, role=role)
