"""One training run as a stage: start or go on, train, evaluate the last and the best checkpoint."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log

from visionkit.checks import check_choice
from visionkit.engine.checkpoints import load_checkpoint, load_exactly, read_weights, state_dict_of
from visionkit.engine.config import RunConfig, building, check_types
from visionkit.engine.epoch_files import newest_whole_checkpoint
from visionkit.engine.pipeline import Context
from visionkit.engine.runner import VisionKitRunner
from visionkit.errors import VisionKitError
from visionkit.files import write_text
from visionkit.registry import STAGES

_RUN_NUMBER = itertools.count()


@STAGES.register_module()
class RunnerStage:
    """A stage that trains one model with one mmengine Runner.

    Args:
        name: The stage's name, which is also its folder's.
        runner: An mmengine Runner config; ``work_dir``, hooks, seed and launcher are filled in.
        report: Name of this model in the results; None evaluates nothing.
        init_from: An earlier stage, or a checkpoint file, that the model starts from. A model that defines
            ``load_source(state_dict)`` decides itself what it takes.
        init_checkpoint: Checkpoint of that stage to start from, ``"last"`` or ``"best"``.
    """

    def __init__(
        self,
        name: str,
        runner: dict[str, Any] | None = None,
        report: str | None = None,
        init_from: str | None = None,
        init_checkpoint: str = "last",
    ) -> None:
        check_choice(f"stage {name}", ("last", "best"), init_checkpoint=init_checkpoint)
        self.name = name
        self.runner = runner
        self.report = report
        self.init_from = init_from
        self.init_checkpoint = init_checkpoint

    def runner_cfg(self, context: Context) -> dict[str, Any]:
        """The Runner's config."""
        if self.runner is None:
            raise VisionKitError(f"stage {self.name}: needs runner=dict(model=..., train_dataloader=..., ...)")
        return self.runner

    def check(self, cfg: Config, earlier: Sequence[str]) -> None:
        """Look for what would stop the stage, before any stage starts.

        Args:
            cfg: The whole config.
            earlier: Names of the stages before this one.

        Raises:
            VisionKitError: ``init_from`` is neither an earlier stage nor a file.
        """
        if self.init_from is not None and self.init_from not in earlier and not Path(self.init_from).is_file():
            raise VisionKitError(
                f"stage {self.name}: init_from={self.init_from!r} is neither an earlier stage "
                f"({', '.join(earlier) or 'there is none'}) nor a checkpoint file; give one of these"
            )

    def run(self, context: Context) -> None:
        """Train from where the folder's newest checkpoint is, evaluate, write ``results.json``."""
        with building(f"stage {self.name}"):
            cfg = self.runner_cfg(context)
        check_types(cfg, f"stage {self.name}")
        source = self._source_checkpoint(context)
        runner = train(cfg, context.work_dir, context.seed, context.launcher, start_from=source)
        if self.report:
            rows = evaluate_checkpoints(runner, self.report)
            if is_main_process():
                write_text(context.work_dir / "results.json", json.dumps(rows, indent=1))
        if is_main_process():
            print_log(f"stage {self.name}: weights in {final_checkpoint(context.work_dir)}", "current")
        self.finish(runner, context)

    def finish(self, runner: VisionKitRunner, context: Context) -> None:
        """What a kind of stage does after training: pictures, exports."""

    def test(self, context: Context, checkpoint: Path) -> dict[str, Any]:
        """Scores of a checkpoint on the data that the stage reports on.

        Raises:
            VisionKitError: the stage reports on nothing, or the checkpoint is broken or of another architecture.
        """
        state = self.weights(load_checkpoint(checkpoint), checkpoint)
        with building(f"stage {self.name}"):
            cfg = self.test_cfg(context, state)
        if "test_dataloader" not in cfg:
            raise VisionKitError(f"stage {self.name}: has no test data; choose a stage that reports")
        check_types(cfg, f"stage {self.name}")
        runner = build_runner(cfg, context.work_dir, context.seed)
        load_exactly(runner.bare_model, state, checkpoint)
        return runner.test()

    def weights(self, content: dict[str, Any], path: Path) -> dict[str, Any]:
        """The weights in a checkpoint's content, under the names of this project."""
        return state_dict_of(content, path)

    def test_cfg(self, context: Context, state: dict[str, Any]) -> dict[str, Any]:
        """The Runner's config without its training; ``state`` holds the weights that the model must fit."""
        cfg = self.runner_cfg(context)
        return {key: cfg[key] for key in cfg if key in ("model", "image_size") or key.startswith("test_")}

    def _source_checkpoint(self, context: Context) -> Path | None:
        if self.init_from in context.outputs:
            folder = context.outputs[self.init_from]
            return final_checkpoint(folder) if self.init_checkpoint == "last" else best_checkpoint(folder)
        return Path(self.init_from) if self.init_from else None


def train(
    cfg: dict[str, Any], folder: Path, seed: int, launcher: str = "none", start_from: Path | None = None
) -> VisionKitRunner:
    """Build a Runner, let it go on from the folder's newest whole checkpoint or start, and train to the end.

    Args:
        cfg: The Runner's config (model, loaders, loops, optimiser, ...).
        folder: Work folder of the run.
        seed: The run's seed.
        launcher: Launcher of the processes: ``"none"``, ``"pytorch"``, ``"slurm"`` or ``"mpi"``.
        start_from: Weights for a run that starts anew.

    Returns:
        The runner after its last epoch.
    """
    resume_from = newest_whole_checkpoint(folder)
    with building(str(folder)):
        runner = build_runner(cfg, folder, seed, launcher, resume_from)
    if start_from is not None and resume_from is None:
        give_weights(runner.bare_model, start_from)
    try:
        runner.train()
    finally:
        for hook in runner.hooks:
            if hasattr(hook, "close"):
                hook.close()
    return runner


def build_runner(
    cfg: dict[str, Any], folder: Path, seed: int, launcher: str = "none", resume_from: Path | None = None
) -> VisionKitRunner:
    """A Runner with the house's hooks and loggers."""
    gc.collect()  # the last runner's parts refer to each other: until collected, its model stays on the GPU
    cfg = dict(cfg)
    hooks = dict(
        logger=dict(type="LoggerHook", interval=cfg.pop("log_interval", 50)),
        sampler_seed=None,
        checkpoint=dict(type="visionkit.SafeCheckpointHook", best=cfg.pop("best", None)),
    )
    custom = [dict(type=f"visionkit.{name}") for name in ("FiniteLossHook", "ProgressHook")]
    backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
    settings = dict(
        work_dir=str(folder),
        launcher=launcher,
        randomness=dict(seed=seed),
        # mmengine would fork on macOS too, whose own libraries may crash in a forked process
        env_cfg=dict(mp_cfg=dict(mp_start_method="fork" if sys.platform == "linux" else "spawn")),
        default_scope="mmengine",
        experiment_name=f"{folder.name}-{int(time.time())}-{next(_RUN_NUMBER)}",
        visualizer=dict(type="Visualizer", vis_backends=backends),
        log_level="INFO",
        load_from=str(resume_from) if resume_from else None,
        resume=resume_from is not None,
    )
    cfg["default_hooks"] = dict(hooks, **cfg.get("default_hooks", {}))
    cfg["custom_hooks"] = custom + list(cfg.get("custom_hooks", []))
    if resume_from:
        print_log(f"going on from {resume_from}", "current")
    return VisionKitRunner.from_cfg(RunConfig(dict(settings, **cfg)))


def give_weights(model: Any, path: Path) -> None:
    """Start a model from a checkpoint: through its ``load_source`` where it has one, else key by key."""
    state = read_weights(path)
    if hasattr(model, "load_source"):
        model.load_source(state)
    else:
        load_exactly(model, state, path)


def final_checkpoint(folder: Path) -> Path:
    """The last epoch's checkpoint of a finished stage. Raises VisionKitError where none is whole."""
    path = newest_whole_checkpoint(folder)
    if path is None:
        raise VisionKitError(f"{folder}: holds no whole checkpoint; run that stage first")
    return path


def best_checkpoint(folder: Path) -> Path:
    """The checkpoint of the epoch that validation found best. Raises VisionKitError where nothing was validated."""
    path = folder / "best.pth"
    if not path.is_file():
        raise VisionKitError(f"{path}: that stage validates on nothing, so it has no best; use init_checkpoint='last'")
    return path


def evaluate_checkpoints(runner: VisionKitRunner, name: str) -> list[dict[str, Any]]:
    """Test the model as training left it and as its best validation found it.

    Returns:
        One row for ``last`` and, where one was kept and is whole, one for ``best``.
    """
    folder = Path(runner.work_dir)
    barrier()  # the main process may still be writing the last checkpoint
    rows, best = [], None
    if (folder / "best.pth").is_file():
        try:
            best = runner.load_checkpoint(str(folder / "best.pth"))["meta"]["epoch"]
        except VisionKitError as error:  # nothing makes it again, and the stage can end without
            print_log(f"the results are without the best epoch: {error}", "current", logging.WARNING)
        else:
            rows.append(dict(model=name, checkpoint="best", **runner.test()))
    if runner.load_checkpoint(str(final_checkpoint(folder)))["meta"]["epoch"] == best:
        return [dict(rows[0], checkpoint="last"), *rows]  # the last epoch is the best: its test is done
    return [dict(model=name, checkpoint="last", **runner.test()), *rows]
