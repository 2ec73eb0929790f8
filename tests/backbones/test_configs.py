from pathlib import Path

import torch
from mmengine.config import Config

from visionkit.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_core_reid_on_a_mavit():
    config = Config.fromfile(CONFIGS / "core_reid_mavit_tiny_synthetic.py")
    net = MODELS.build(config.backbone)
    assert net(torch.zeros(2, 3, *config.image_size)).shape == (2, net.num_features, 4, 2)
    assert len(net.body.model.stages) == 3 and "target" in config.stages
