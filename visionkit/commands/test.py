"""Evaluate a checkpoint of a stage on the data that the stage reports on.

visionkit test configs/core_reid_synthetic.py work_dirs/first/target/best.pth
"""

from __future__ import annotations

import argparse
from pathlib import Path

from visionkit.commands.cfg_options import add_cfg_options
from visionkit.errors import VisionKitError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``visionkit test``."""
    parser.add_argument("config", help="a config file; it is Python code and is run, so only give one that you trust")
    parser.add_argument("checkpoint", help="a checkpoint written by visionkit train or released by CORE-ReID's authors")
    parser.add_argument(
        "--stage", metavar="NAME", help="the stage that the checkpoint belongs to (default: the name of its folder)"
    )
    parser.add_argument("--work-dir", help="folder for the logs (default: work_dirs/<config's name>_test)")
    add_cfg_options(parser, "stages.target.metric.rerank=True")


def run(options: argparse.Namespace) -> int:
    """Build the stage's model, read the weights, print the scores."""
    from visionkit.checks import check_keys
    from visionkit.engine.config import load_config
    from visionkit.engine.pipeline import Context, build_stage, check_config, show_table

    cfg = load_config(options.config, options.cfg_options)
    seed = cfg.get("seed", 1)
    check_config(cfg, seed)
    checkpoint = Path(options.checkpoint)
    if not checkpoint.is_file():
        raise VisionKitError(f"{checkpoint}: no such checkpoint; give the path of a .pth or .safetensors file")
    name = options.stage or checkpoint.resolve().parent.name
    if options.stage is None and name not in cfg["stages"]:
        raise VisionKitError(f"{checkpoint}: its folder {name!r} is no stage of the config; give --stage")
    check_keys([name], cfg["stages"], "--stage")
    work_dir = Path(options.work_dir or Path("work_dirs") / f"{Path(options.config).stem}_test")
    stage = build_stage(name, cfg["stages"][name])
    if not hasattr(stage, "test"):
        raise VisionKitError(f"--stage {name}: has no test data; choose a stage that reports")
    context = Context(cfg, work_dir, seed, "none", {})
    show_table([dict(checkpoint=options.checkpoint, **stage.test(context, checkpoint))])
    return 0
