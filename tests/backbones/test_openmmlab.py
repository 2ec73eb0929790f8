"""Configs of mmdetection and mmsegmentation that take our backbones: read as their tools read them, backbones built."""

import importlib.util
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted([*CONFIGS.glob("mmdet/*.py"), *CONFIGS.glob("mmseg/*.py")])


def test_all_heads_are_there():
    names = " ".join(file.name for file in FILES)
    assert all(name in names for name in ("retinanet", "mask_rcnn", "cascade", "semantic_fpn", "upernet"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_config_is_read_and_its_backbone_built(file):
    library = file.parent.name
    if importlib.util.find_spec(library) is None:  # importing it would ask for mmcv's compiled operators
        pytest.skip(f"{library} is not installed")
    cfg = Config.fromfile(file)
    assert cfg.custom_imports["imports"] == ["visionkit.backbones"]
    backbone = ROOT.build(cfg.model.backbone).eval()
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 64, 96))
    channels = [each.shape[1] for each in maps]
    head = cfg.model.get("neck") or cfg.model.decode_head
    assert head.in_channels == channels == [64, 128, 256, 512]
    if "auxiliary_head" in cfg.model:
        assert cfg.model.auxiliary_head.in_channels == channels[cfg.model.auxiliary_head.in_index]
    assert cfg.optim_wrapper.optimizer.type == "AdamW" and cfg.train_dataloader
    assert cfg.model.get("pretrained") is None and cfg.optim_wrapper.type == "OptimWrapper"
