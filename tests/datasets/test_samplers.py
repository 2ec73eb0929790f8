from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visionkit.datasets import RandomMultipleGallerySampler
from visionkit.errors import VisionKitError


def rows_of(pids, camids):
    return SimpleNamespace(pids=list(pids), camids=list(camids))


def groups(dataset, order):
    """The emitted rows, split where the identity changes (each identity comes once per pass)."""
    found = {}
    for row in order:
        found.setdefault(dataset.pids[row], []).append(row)
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=40), st.integers(2, 5))
def test_laws(rows, num_instances):
    dataset = rows_of(*zip(*rows))
    sampler = RandomMultipleGallerySampler(dataset, num_instances)
    order = list(sampler)
    assert len(order) == len(sampler)
    counts = Counter(dataset.pids)
    found = groups(dataset, order)
    assert set(found) == set(counts)
    for pid, (anchor, *others) in found.items():
        if counts[pid] == 1:
            assert not others
            continue
        assert len(others) == num_instances - 1 and anchor not in others
        elsewhere = [r for r, p in enumerate(dataset.pids) if p == pid and dataset.camids[r] != dataset.camids[anchor]]
        pool = elsewhere or [r for r, p in enumerate(dataset.pids) if p == pid and r != anchor]
        assert set(others) <= set(pool)
        if len(pool) >= num_instances:
            assert len(set(others)) == len(others)


@pytest.mark.parametrize("images, repeats", [(4, True), (5, False)])
def test_others_repeat_unless_there_are_more_than_wanted(images, repeats):
    """MMT asks for ``num_instances`` of them, one more than it draws."""
    torch.manual_seed(0)
    sampler = RandomMultipleGallerySampler(rows_of([0] * images, [0] * images), 4)
    assert any(len(set(sampler)) < 4 for _ in range(20)) == repeats


def test_identities_come_in_one_piece_and_in_a_new_order_each_pass():
    dataset = rows_of([pid for pid in range(30) for _ in range(6)], list(range(6)) * 30)
    sampler = RandomMultipleGallerySampler(dataset, 4)
    torch.manual_seed(0)
    first, second = list(sampler), list(sampler)
    assert first != second
    assert all(len({dataset.pids[row] for row in first[i : i + 4]}) == 1 for i in range(0, len(first), 4))
    torch.manual_seed(0)
    assert list(sampler) == first


def test_order_does_not_depend_on_the_order_in_which_identities_appear():
    pids = [3, 1, 2, 1, 3, 2]
    torch.manual_seed(1)
    first = [pids[row] for row in RandomMultipleGallerySampler(rows_of(pids, [0, 0, 0, 1, 1, 1]), 2)]
    pids = sorted(pids)
    torch.manual_seed(1)
    assert [pids[row] for row in RandomMultipleGallerySampler(rows_of(pids, [0, 1] * 3), 2)] == first


def test_ranks_share_whole_identities(monkeypatch):
    dataset = rows_of([pid for pid in range(11) for _ in range(4)], [0, 1, 2, 3] * 11)

    def share(rank, epoch):
        monkeypatch.setattr("visionkit.datasets.samplers.get_dist_info", lambda: (rank, 3))
        torch.manual_seed(epoch)
        sampler = RandomMultipleGallerySampler(dataset, 4, seed=5)
        order = list(sampler)
        assert abs(len(order) - len(sampler)) <= 4
        return {dataset.pids[row] for row in order}

    for epoch in (0, 1):
        shares = [share(rank, epoch) for rank in range(3)]
        assert set.union(*shares) == set(range(11)) and sum(map(len, shares)) == 11
        assert {len(pids) for pids in shares} == {3, 4}
    assert share(0, 0) != share(0, 1)


def test_one_instance_is_no_triplet():
    with pytest.raises(VisionKitError, match="at least 2"):
        RandomMultipleGallerySampler(rows_of([0], [0]), 1)
