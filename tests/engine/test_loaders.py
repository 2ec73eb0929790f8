"""What an item is follows from its place in the epoch: not from workers, nor from what was loaded before it."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from reid_trees import write_market

from visionkit.datasets import images as reading
from visionkit.engine.loaders import NamedLoaders, batch_paths, build_eval_loader
from visionkit.engine.seeds import rng_state, set_rng_state
from visionkit.errors import VisionKitError
from visionkit.registry import DATA_SAMPLERS

from .toy import ToyData

pytestmark = pytest.mark.filterwarnings("ignore:.*published with")


@DATA_SAMPLERS.register_module(force=True)
class SomeRows(torch.utils.data.Sampler):
    """Random rows, another number of them in every lap, at least a batch."""

    def __init__(self, dataset):
        self.length = len(dataset)

    def __iter__(self):
        return iter(torch.randperm(self.length)[: torch.randint(5, self.length, ())].tolist())


class WhoseData(ToyData):
    def __getitem__(self, index):
        return dict(super().__getitem__(index), process=os.getpid())


def loaders(workers=0, length=24, iters=9, **options):
    view = dict(batch_size=5, num_workers=workers, dataset=WhoseData(length), **options)
    return NamedLoaders(dict(view=view, other=dict(view, dataset=ToyData(7))), iters, seed=3)


def images(batches):
    return torch.stack([torch.cat([batch["view"]["image"], batch["other"]["image"]]) for batch in batches])


def test_workers_change_nothing():
    assert torch.equal(images(loaders()), images(loaders(workers=2)))


@pytest.mark.parametrize("start", [1, 4, 8])  # laps of 4 batches, and of 1 in the other loader
def test_going_on_inside_an_epoch(start):
    assert torch.equal(images(loaders())[start:], images(loaders().batches_from(start)))


@pytest.mark.parametrize("start", [0, 5])
def test_laps_of_different_lengths(start):
    sampler = dict(type="visionkit.SomeRows")
    whole = images(loaders(sampler=sampler, iters=12))
    assert torch.equal(whole[start:], images(loaders(2, sampler=sampler, iters=12).batches_from(start)))


def test_one_set_of_workers_serves_all_laps_of_an_epoch():
    batches = list(loaders(workers=2))
    assert len({process for batch in batches for process in batch["view"]["process"].tolist()}) == 2


def views(root):
    """Two loaders of one data set, each with labels of its own."""
    transforms = [dict(type="visionkit.ToTensor")]
    people = dict(type="visionkit.Market1501", root=str(root), split="train", transforms=transforms)
    dataset = dict(type="visionkit.PseudoLabelDataset", dataset=dict(people, cache="memory", cache_size=(16, 8)))
    loaders = NamedLoaders({name: dict(batch_size=6, dataset=dataset) for name in ("whole", "top")}, 4, seed=3)
    for number, name in enumerate(loaders.streams):
        loaders[name].set_labels(np.arange(12) % (2 + number))
    return loaders


def test_views_of_one_data_set_share_decoded_images_but_no_labels(tmp_path, monkeypatch):
    read, read_image = [], reading.read_image
    monkeypatch.setattr(reading, "read_image", lambda path: read.append(path) or read_image(path))
    batches = list(views(write_market(tmp_path)))
    assert len(read) == len(set(read)) == 12
    for name, count in (("whole", 2), ("top", 3)):
        assert all(torch.equal(batch[name]["pid"], batch[name]["index"] % count) for batch in batches)


def test_views_of_one_data_set_warn_once_of_a_broken_image(tmp_path):
    loaders = views(write_market(tmp_path))
    open(loaders["whole"].dataset.samples[0].path, "wb").close()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        list(loaders)
    assert sum("training goes on" in str(each.message) for each in warned) == 1


def test_epochs_differ_and_the_global_generators_are_left_alone():
    first = loaders()
    before = torch.get_rng_state()
    one = images(first)
    first.epoch = 1
    assert not torch.equal(one, images(first))
    assert torch.equal(before, torch.get_rng_state())


def test_the_generators_of_gpus_are_left_alone(monkeypatch):
    """A seed that all processes share would give all of them the same drop path and the same samples along rays."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    list(loaders())
    assert not seeded


def test_states_come_back():
    state = rng_state()
    expected = torch.rand(3)
    set_rng_state(state)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("devices", [0, 1, 3])
def test_states_come_back_where_there_are_other_gpus(monkeypatch, devices):
    """Of those that are there now; torch would look for each of the others."""
    found = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr("torch.cuda.random.set_rng_state", lambda state, device: found.append(device))
    set_rng_state(dict(rng_state(), cuda=[torch.zeros(16, dtype=torch.uint8)] * 2))
    assert found == list(range(min(devices, 2)))


def test_no_images():
    with pytest.raises(VisionKitError, match="no images for process 0 of 1"):
        next(iter(loaders(length=0)))


def test_every_file_of_a_batch_is_named():
    batch = dict(pair=dict(a=torch.zeros(2), path=["1.jpg", "2.jpg"], path_b=["3.jpg", "4.jpg"]), other=[1])
    assert batch_paths(batch) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]


BROKEN = """
from torch.utils.data import Dataset
from visionkit.engine.loaders import build_eval_loader

class Broken(Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, index):
        raise ValueError("no such item")

next(iter(build_eval_loader(dict(dataset=Broken(), batch_size=1, num_workers=1))))
"""


def test_a_program_that_an_error_in_a_worker_ends_does_end():
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "ValueError: no such item" in done.stderr


class Unsendable(str):
    def __reduce__(self):
        raise RuntimeError("unable to allocate shared memory")


class UnsendableData(ToyData):
    def __getitem__(self, index):
        return dict(name=Unsendable())


def test_a_batch_that_cannot_be_sent_is_not_waited_for():
    loader = build_eval_loader(dict(dataset=UnsendableData(), batch_size=2, num_workers=1, timeout=30))
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        next(iter(loader))
