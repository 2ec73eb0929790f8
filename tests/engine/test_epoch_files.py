import pytest

from visionkit.engine.checkpoints import load_checkpoint, save_checkpoint
from visionkit.engine.epoch_files import newest_whole_checkpoint
from visionkit.errors import VisionKitError


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
