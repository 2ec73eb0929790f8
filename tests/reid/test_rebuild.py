import json

import pytest
import torch

from visionkit.engine.checkpoints import save_checkpoint
from visionkit.errors import VisionKitError
from visionkit.registry import MODELS
from visionkit.reid.rebuild import rebuild

TIMM = dict(type="visionkit.TimmFeatures", model_name="resnet10t")


class Evil:
    def __reduce__(self):
        return exec, ("raise AssertionError('the file was run')",)


def checkpoint(folder, said=None, **options):
    """A checkpoint of a small model, which says other things of its backbone, or of the model."""
    config = dict(type="visionkit.SourceReID", num_classes=3, backbone=TIMM)
    state = MODELS.build(config).state_dict()
    config = dict(config, backbone=dict(TIMM, **options)) | (said or {})
    save_checkpoint(dict(state_dict=state, meta=dict(model=json.dumps(config))), folder / "best.pth")
    return folder / "best.pth"


@pytest.mark.parametrize(
    "options",
    [
        lambda file: dict(checkpoint_path=file),
        lambda file: dict(pretrained=True, pretrained_cfg=dict(file=file)),
        lambda file: dict(pretrained=True, pretrained_cfg_overlay=dict(file=file)),
    ],
)
def test_no_other_file_is_read(tmp_path, options):
    torch.save(dict(state_dict=Evil()), tmp_path / "evil.pth")
    model, _ = rebuild(checkpoint(tmp_path, **options(str(tmp_path / "evil.pth"))))
    assert model.extract(torch.zeros(1, 3, 64, 32)).shape == (1, 512)


def test_a_model_of_another_size_takes_no_memory(tmp_path):
    file = checkpoint(tmp_path, said=dict(num_classes=10**12))
    with pytest.raises(VisionKitError, match="best.pth: its weights do not fit the model that it describes"):
        rebuild(file)


def test_a_model_that_reads_numbers_off_its_tensors(tmp_path, monkeypatch):
    class Reader(type(MODELS.build(TIMM))):
        def __init__(self, **options):
            super().__init__(**options)
            self.rates = torch.linspace(0, 0.1, 3).tolist()

    monkeypatch.setitem(MODELS.module_dict, "Reader", Reader)
    model, _ = rebuild(checkpoint(tmp_path, type="visionkit.Reader"))
    assert model.backbone.rates[0] == 0
