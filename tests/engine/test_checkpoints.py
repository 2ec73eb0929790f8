import errno
import os
import signal
from pathlib import Path

import pytest
import torch

from visionkit.engine import checkpoints
from visionkit.engine.checkpoints import load_checkpoint, save_checkpoint, state_dict_of
from visionkit.errors import VisionKitError


def test_round_trip_and_checksum(tmp_path):
    save_checkpoint(dict(state_dict=dict(a=torch.arange(3))), tmp_path / "epoch_1.pth")
    assert torch.equal(load_checkpoint(tmp_path / "epoch_1.pth")["state_dict"]["a"], torch.arange(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_1.pth", "epoch_1.pth.sha256"]


def test_kills_between_checksum_and_file_leave_the_old_one_whole(tmp_path, monkeypatch):
    save_checkpoint(dict(epoch=0), tmp_path / "best.pth")
    replace = os.replace

    def killed(source, target):
        if Path(target).suffix == ".pth":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    for epoch in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(dict(epoch=epoch), tmp_path / "best.pth")
        assert load_checkpoint(tmp_path / "best.pth") == dict(epoch=0)
    monkeypatch.undo()
    save_checkpoint(dict(epoch=3), tmp_path / "best.pth")
    assert load_checkpoint(tmp_path / "best.pth") == dict(epoch=3)
    assert len((tmp_path / "best.pth.sha256").read_text().split()) == 1


@pytest.mark.parametrize(
    "content, message",
    [
        ({3: torch.ones(1)}, "a.pth: holds a Tensor under 3, expected tensors by name"),
        (dict(state_dict=dict(a=1)), "a.pth: holds a int under 'a'"),
    ],
)
def test_weights_are_tensors_by_name(content, message):
    with pytest.raises(VisionKitError, match=message):
        state_dict_of(content, "a.pth")


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(dict(epoch=1), tmp_path / "epoch_1.pth")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(VisionKitError, match="the disk is full"):
        save_checkpoint(dict(epoch=2), tmp_path / "epoch_1.pth")
    assert load_checkpoint(tmp_path / "epoch_1.pth") == dict(epoch=1)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_write_that_really_fails_half_way(tmp_path):
    save_checkpoint(dict(epoch=1), tmp_path / "epoch_1.pth")
    resource = pytest.importorskip("resource")  # Windows has none
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[0][1]))
    try:
        with pytest.raises(VisionKitError, match="epoch_1.pth: cannot be written .File too large.; check the disk"):
            save_checkpoint(dict(weights=[torch.zeros(10_000) for _ in range(9)]), tmp_path / "epoch_1.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])
    assert load_checkpoint(tmp_path / "epoch_1.pth") == dict(epoch=1)
    assert len(list(tmp_path.iterdir())) == 2
