import argparse
import errno
import logging
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from visionkit.engine import checkpoints
from visionkit.engine.checkpoints import (
    load_checkpoint,
    newest_whole_checkpoint,
    quiet_on_a_full_disk,
    remove_leftovers,
    save_checkpoint,
    state_dict_of,
)
from visionkit.errors import VisionKitError
from visionkit.files import beside


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/should_not_exist",)


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


def test_damaged_newest_is_passed_over(tmp_path):
    for epoch in (2, 10):
        save_checkpoint(dict(state_dict={}), tmp_path / f"epoch_{epoch}.pth")
    assert newest_whole_checkpoint(tmp_path).name == "epoch_10.pth"
    (tmp_path / "epoch_10.pth").write_bytes(b"half")
    assert newest_whole_checkpoint(tmp_path).name == "epoch_2.pth"
    with pytest.raises(VisionKitError, match="checksum differs"):
        load_checkpoint(tmp_path / "epoch_10.pth")


def test_a_checkpoint_without_its_checksum_is_whole_if_it_can_be_read(tmp_path):
    for epoch in (1, 2):
        save_checkpoint(dict(state_dict={}), tmp_path / f"epoch_{epoch}.pth")
        (tmp_path / f"epoch_{epoch}.pth.sha256").unlink()
    assert newest_whole_checkpoint(tmp_path).name == "epoch_2.pth"
    (tmp_path / "epoch_2.pth").write_bytes((tmp_path / "epoch_2.pth").read_bytes()[:-100])
    assert newest_whole_checkpoint(tmp_path).name == "epoch_1.pth"


def test_a_pickle_that_runs_code_is_refused_by_name(tmp_path):
    torch.save(dict(state_dict=Evil()), tmp_path / "evil.pth")
    with pytest.raises(VisionKitError, match="it would run 'posix.system'"):
        load_checkpoint(tmp_path / "evil.pth")


def test_a_namespace_of_options_is_read_and_excuses_nothing(tmp_path):
    """As timm's and DeiT's savers write it."""
    options = argparse.Namespace(lr=0.1, model="deit")
    torch.save(dict(model=dict(a=torch.arange(3)), args=options), tmp_path / "deit.pth")
    assert load_checkpoint(tmp_path / "deit.pth")["args"] == options
    torch.save(dict(args=options, state_dict=Evil()), tmp_path / "evil.pth")
    with pytest.raises(VisionKitError, match="it would run 'posix.system'"):
        load_checkpoint(tmp_path / "evil.pth")


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


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_rubbish_is_one_line(tmp_path, content):
    (tmp_path / "rubbish.pth").write_bytes(content)
    with pytest.raises(VisionKitError, match="rubbish.pth") as caught:
        load_checkpoint(tmp_path / "rubbish.pth")
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(dict(epoch=1), tmp_path / "epoch_1.pth")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(VisionKitError, match="the disk is full"):
        save_checkpoint(dict(epoch=2), tmp_path / "epoch_1.pth")
    assert load_checkpoint(tmp_path / "epoch_1.pth") == dict(epoch=1)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_logs_on_a_full_disk_print_no_traceback(monkeypatch, capfd):
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    quiet_on_a_full_disk()
    log = logging.Logger("full")
    log.addHandler(logging.StreamHandler(open("/dev/full", "w")))
    log.error("one line")
    thread = threading.Thread(target=lambda: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    thread.start()
    thread.join()
    assert capfd.readouterr().err == ""


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


def test_what_a_killed_run_left_half_written_goes(tmp_path):
    with pytest.raises(KeyboardInterrupt), beside(tmp_path / "last.pth") as temporary:
        temporary.touch()
        left = temporary.rename(tmp_path / "aside")
        raise KeyboardInterrupt
    left.rename(temporary)
    (tmp_path / "notes.tmp").touch()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.tmp"]
