"""A camera network small enough for a command to be trained on in seconds, and the config that does it."""

from pathlib import Path

from reid_trees import write_duke, write_market

CONFIG = """
seed = 1
workers = 0
image_size = (32, 16)
backbone = dict(
    type="visionkit.TimmFeatures", model_name="resnet18", layers=(1, 1, 1, 1), channels=(4, 8, 8, 8), output_stride=8
)
source = dict(type="visionkit.Market1501", root="data")
target = dict(type="visionkit.DukeMTMCreID", root="data")
training = dict(epochs=1, iters_per_epoch=2, identities=3, instances=2, augmentation=dict(pad=2))
stages = dict(
    camstyle=dict(
        type="visionkit.CamStyleStage",
        model=dict(
            generator=dict(ngf=2, num_blocks=1, dropout=0.0), discriminator=dict(ndf=2, num_layers=1), cycle_weight=10.0
        ),
        image_size=(16, 16), load_size=(18, 18), epochs=1, decay_epochs=0, iters_per_epoch=1, sheet_rows=2,
    ),
    source=dict(
        training, type="visionkit.SourcePretraining", styled="camstyle", warmup_epochs=0, milestones=(),
        report="direct transfer",
    ),
    target=dict(training, type="visionkit.TargetFinetuning", init_from="source", num_clusters=3, report="adapted"),
)
del training
"""


def write_site(folder: Path) -> Path:
    """``folder/data`` with both trees and ``folder/config.py``; returns the config's path."""
    write_market(folder / "data" / "Market-1501-v15.09.15", size=(32, 16))
    write_duke(folder / "data" / "DukeMTMC-reID", size=(32, 16))
    config = folder / "config.py"
    config.write_text(CONFIG)
    return config


def without_styles(config: Path) -> Path:
    """The same config without its camera styles, which take the longest."""
    more = 'stages.pop("camstyle")\nstages["source"]["styled"] = None\n'
    config.write_text(config.read_text() + more)
    return config
