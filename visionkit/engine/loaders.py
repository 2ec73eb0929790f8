"""Loaders whose order and augmentation depend on the seed, the epoch and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import chain, count, islice
from typing import Any

import torch
from mmengine.dist import get_dist_info, get_rank
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from visionkit.checks import check_counts
from visionkit.engine.seeds import derived_seed, own_seed
from visionkit.engine.workers import start_worker
from visionkit.errors import VisionKitError
from visionkit.registry import DATA_SAMPLERS, DATASETS


class NamedLoaders:
    """Several endless training loaders, drawn from side by side.

    Args:
        loaders: ``{name: dict(batch_size, dataset, sampler=None, num_workers=0)}``. The sampler is
            built with the data set; without one, images come in random order, shared among the processes. Equal
            configs of a data set are read once: their loaders share its files and cache, each under labels of its own.
        iters_per_epoch: Length of an epoch, in batches of each loader.
        seed: The run's seed.

    Iterating yields ``{name: batch}``. Each epoch starts every loader anew, in an order that follows from
    (seed, epoch, name) alone, and an item's augmentation follows from its place in that order. So a resumed run sees
    what the uninterrupted one would have seen, and the number of workers changes nothing.
    """

    def __init__(self, loaders: dict[str, dict[str, Any]], iters_per_epoch: int, seed: int) -> None:
        datasets = _build_once([cfg["dataset"] for cfg in loaders.values()])
        self.streams = {
            name: _Stream(derived_seed(seed, i), **dict(cfg, dataset=dataset))
            for i, ((name, cfg), dataset) in enumerate(zip(loaders.items(), datasets))
        }
        self.iters_per_epoch = iters_per_epoch
        self.epoch = 0

    def __len__(self) -> int:
        return self.iters_per_epoch

    def __getitem__(self, name: str) -> Dataset:
        """The data set of one loader."""
        return self.streams[name].dataset

    @property
    def dataset(self) -> Dataset:
        """The first loader's data set: mmengine's hooks ask a loader for one."""
        return next(iter(self.streams.values())).dataset

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[dict[str, Any]]:
        """The epoch's batches from number ``start`` on; those before it are not loaded."""
        loaders = [stream.loader(self.epoch, start, self.iters_per_epoch) for stream in self.streams.values()]
        for batches in zip(*loaders):
            yield dict(zip(self.streams, batches))


def _build_once(cfgs: list[dict[str, Any] | Dataset]) -> list[Dataset]:
    """Data sets; of equal configs one is built, and shallow copies of it share the images that were decoded."""
    datasets: list[Dataset] = []
    for number, cfg in enumerate(cfgs):
        first = cfgs.index(cfg)
        again = isinstance(cfg, dict) and first < number
        datasets.append(copy.copy(datasets[first]) if again else build_dataset(cfg))
    return datasets


class _Stream:
    """One loader of :class:`NamedLoaders`."""

    def __init__(
        self, seed: int, dataset: Dataset, batch_size: int, sampler: dict[str, Any] | None = None, num_workers: int = 0
    ) -> None:
        check_counts("train_dataloader", 1, batch_size=batch_size)
        check_counts("train_dataloader", 0, num_workers=num_workers)
        self.seed, self.dataset, self.batch_size, self.num_workers = seed, dataset, batch_size, num_workers
        self.sampler = DATA_SAMPLERS.build(dict(sampler, dataset=dataset)) if sampler else None

    def loader(self, epoch: int, start: int, stop: int) -> DataLoader:
        """An epoch's batches ``start`` to ``stop``; laps follow each other without new workers, which take seconds."""
        laps = (self._lap(epoch, lap) for lap in count())
        return DataLoader(
            _Seeded(self.dataset, self.seed, epoch, get_rank()),
            batch_sampler=islice(chain.from_iterable(laps), start, stop),
            num_workers=self.num_workers,
            generator=torch.Generator(),  # its own, or it would draw from the global one
            worker_init_fn=start_worker,
            collate_fn=default_collate,
        )

    def _lap(self, epoch: int, lap: int) -> list[list[tuple[int, int, int]]]:
        """This process's batches of one pass over the data, in a fresh order: each item's lap, place in it and row."""
        rank, world_size = get_dist_info()
        with torch.random.fork_rng(devices=[]):  # the order is one for all processes, so it cannot use their own state
            torch.default_generator.manual_seed(derived_seed(self.seed, epoch, lap))  # torch's would seed GPUs too
            order = list(self.sampler) if self.sampler else _random_share(self.dataset, rank, world_size)
        if not order:
            raise VisionKitError(f"no images for process {rank} of {world_size}; use fewer processes or more images")
        if len(order) == 1:
            order = order * 2  # a batch norm needs two values
        items = [(lap, place, row) for place, row in enumerate(order)]
        batches = [items[i : i + self.batch_size] for i in range(0, len(items), self.batch_size)]
        if len(batches) > 1 and len(batches[-1]) < self.batch_size:
            batches.pop()
        return batches


class _Seeded(Dataset):
    """Items whose random choices follow from their place, whichever process makes them and whatever it made before."""

    def __init__(self, dataset: Dataset, seed: int, epoch: int, rank: int) -> None:
        self.dataset, self.seed, self.epoch, self.rank = dataset, seed, epoch, rank

    def __getitem__(self, lap_place_row: tuple[int, int, int]) -> dict[str, Any]:
        lap, place, row = lap_place_row
        with own_seed(self.seed, self.epoch, lap, self.rank, place):
            return self.dataset[row]


def _random_share(dataset: Dataset, rank: int, world_size: int) -> list[int]:
    return torch.randperm(len(dataset)).tolist()[rank::world_size]


class _RankShare(Sampler[int]):
    """Each process's slice of the data, in order."""

    def __init__(self, length: int) -> None:
        rank, world_size = get_dist_info()
        self.indices = range(rank, length, world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def build_eval_loader(cfg: dict[str, Any] | DataLoader) -> DataLoader:
    """A loader for evaluation: every image once, in order; each process takes every n-th.

    Args:
        cfg: ``dict(batch_size, dataset, num_workers=0)``.
    """
    if isinstance(cfg, DataLoader):
        return cfg
    cfg = dict(cfg)
    dataset = build_dataset(cfg.pop("dataset"))
    return DataLoader(
        dataset, sampler=_RankShare(len(dataset)), worker_init_fn=start_worker, collate_fn=default_collate, **cfg
    )


def build_dataset(cfg: dict[str, Any] | Dataset) -> Dataset:
    """A data set from its config, or itself."""
    dataset = DATASETS.build(cfg) if isinstance(cfg, dict) else cfg
    if not hasattr(dataset, "metainfo"):
        dataset.metainfo = {}  # mmengine warns about a data set without one
    return dataset


def batch_paths(batch: Any) -> Sequence[str]:
    """The file names in a batch, however it nests."""
    if not isinstance(batch, dict):
        return []
    found: list[str] = []
    for key, value in batch.items():
        if str(key).startswith("path") and isinstance(value, (list, tuple)):  # "path", and "path_b" of a pair
            found += value
        found += batch_paths(value)
    return found
