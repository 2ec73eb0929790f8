"""Run the stages of a config, one after another.

A finished stage is skipped and an interrupted one goes on from its last checkpoint, so the same command can be given
again after a crash. Each stage works in a folder of its own under --work-dir.

  visionkit train configs/core_reid_synthetic.py --work-dir work_dirs/first
  visionkit train configs/core_reid_market2duke.py --stage target --cfg-options stages.target.num_clusters=700
  torchrun --nproc-per-node 2 tools/train.py configs/core_reid_synthetic.py --launcher pytorch
"""

from __future__ import annotations

import argparse
import logging
import threading
from pathlib import Path

from visionkit.commands.cfg_options import add_cfg_options
from visionkit.files import FULL


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``visionkit train``."""
    parser.add_argument("config", help="a config file; it is Python code and is run, so only give one that you trust")
    parser.add_argument("--work-dir", help="folder for everything that is written (default: work_dirs/<config's name>)")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on where an earlier run in this folder stopped (the default)",
    )
    parser.add_argument("--stage", metavar="NAME", help="run only this stage; those before it must be finished")
    parser.add_argument("--seed", type=int, help="random seed (default: the config's, else 1)")
    add_cfg_options(parser, "stages.target.epochs=5")
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default="none",
        help="launcher of the processes (default: none); pytorch means torchrun",
    )


def run(options: argparse.Namespace) -> int:
    """Run the pipeline."""
    from visionkit.engine.config import load_config
    from visionkit.engine.pipeline import run_pipeline
    from visionkit.engine.stopping import Interrupted

    cfg = load_config(options.config, options.cfg_options)
    work_dir = options.work_dir or cfg.get("work_dir") or Path("work_dirs") / Path(options.config).stem
    seed = options.seed if options.seed is not None else cfg.get("seed", 1)
    quiet_on_a_full_disk()
    try:
        run_pipeline(cfg, work_dir, seed, options.launcher, options.stage, options.resume)
    except Interrupted:
        print("stopped on SIGTERM; the same command goes on from the last checkpoint")
        return 143
    print(f"results, pictures and checkpoints are in {work_dir}")
    return 0


def quiet_on_a_full_disk() -> None:
    """Log files and TensorBoard would each print a traceback; what is raised in the run says it in one line."""
    logging.raiseExceptions = False
    others = threading.excepthook

    def hook(problem: threading.ExceptHookArgs) -> None:
        if getattr(problem.exc_value, "errno", None) not in FULL:
            others(problem)

    threading.excepthook = hook
