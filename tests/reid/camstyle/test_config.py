"""The shared config holds the spec's recipe, which is also the stage's default."""

import inspect

from mmengine.config import Config

from visionkit.engine.config import build, plain
from visionkit.registry import STAGES
from visionkit.reid.camstyle import CamStyleStage, CycleGAN
from visionkit.reid.camstyle.networks import PatchDiscriminator, ResnetGenerator


def defaults_of(cls):
    return {name: p.default for name, p in inspect.signature(cls).parameters.items()}


def test_the_shared_config_spells_out_the_defaults():
    stages = plain(Config.fromfile("configs/_base_/camstyle.py")["stages"])
    stage = build(STAGES, dict(stages["camstyle"], name="camstyle"), "stage camstyle")
    default = CamStyleStage("camstyle")
    for option in ("image_size", "load_size", "epochs", "decay_epochs", "batch_size", "include_test"):
        assert getattr(stage, option) == getattr(default, option), option
    assert plain(stage.optimizer) == plain(default.optimizer)
    networks = {"generator": ResnetGenerator, "discriminator": PatchDiscriminator}
    for key, value in stage.model.items():
        if key in networks:
            assert value.items() <= defaults_of(networks[key]).items()
        elif key != "type":
            assert value == defaults_of(CycleGAN)[key]
