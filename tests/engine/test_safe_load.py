import argparse
import os

import pytest
import torch

from visionkit.engine.checkpoints import load_checkpoint
from visionkit.errors import VisionKitError


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/should_not_exist",)


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


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_rubbish_is_one_line(tmp_path, content):
    (tmp_path / "rubbish.pth").write_bytes(content)
    with pytest.raises(VisionKitError, match="rubbish.pth") as caught:
        load_checkpoint(tmp_path / "rubbish.pth")
    assert "\n" not in str(caught.value)
