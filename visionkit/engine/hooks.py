"""Hooks of every training run: checkpoints, history, progress, a guard against NaN."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from visionkit.checks import check_counts
from visionkit.engine.checkpoints import remove_checkpoint
from visionkit.engine.epoch_files import no_longer_needed
from visionkit.engine.loaders import batch_paths
from visionkit.errors import VisionKitError
from visionkit.files import write_text
from visionkit.registry import HOOKS


@HOOKS.register_module()
class SafeCheckpointHook(Hook):
    """Keeps the last ``keep`` epochs' checkpoints and the one with the best validation score.

    Args:
        best: The metric that picks ``best.pth`` (higher is better); None keeps no best.
        keep: Number of the newest epochs whose checkpoints are kept.
    """

    priority = "VERY_LOW"

    def __init__(self, best: str | None = None, keep: int = 2) -> None:
        check_counts("SafeCheckpointHook", 1, keep=keep)
        self.best = best
        self.keep = keep
        self.metrics: dict[str, float] = {}

    def before_train(self, runner: Any) -> None:
        """Put right what a kill between two writes may have left."""
        self._tidy(runner)

    def before_train_epoch(self, runner: Any) -> None:
        """Forget the last epoch's scores."""
        self.metrics = {}
        self.losses: dict[str, list[torch.Tensor | float]] = {}

    def epoch_state(self, runner: Any) -> dict[str, Any]:
        """The losses of the epoch so far."""
        return dict(losses={name: [float(value) for value in values] for name, values in self.losses.items()})

    def load_epoch_state(self, runner: Any, state: dict[str, Any]) -> None:
        """The inverse of :meth:`epoch_state`."""
        self.metrics = {}
        self.losses = dict(state["losses"])

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Remember each loss for the epoch's mean."""
        for name, value in (outputs or {}).items():
            if isinstance(value, torch.Tensor) and value.numel() == 1:
                self.losses.setdefault(name, []).append(value.detach())

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Remember the scores; the epoch's checkpoint follows."""
        self.metrics = {name: float(value) for name, value in (metrics or {}).items()}

    def after_epoch_complete(self, runner: Any) -> None:
        """Write history, the epoch's checkpoint and, where it is the best so far, ``best.pth``."""
        losses = {name: math.fsum(map(float, values)) / len(values) for name, values in self.losses.items()}
        is_best = self.best in self.metrics and self.metrics[self.best] > best_score(runner.history, self.best)
        runner.history.append(dict(epoch=runner.epoch, **losses, **self.metrics))
        folder = Path(runner.work_dir)
        if is_best:
            runner.save_checkpoint(folder / "best.pth")
        runner.save_checkpoint(folder / f"epoch_{runner.epoch}.pth")
        self._tidy(runner)

    def _tidy(self, runner: Any) -> None:
        """Write the history and drop checkpoints that are no longer needed."""
        if not is_main_process():
            return
        folder = Path(runner.work_dir)
        if runner.history:
            write_text(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in runner.history))
        for path in no_longer_needed(folder, self.keep):
            remove_checkpoint(path)


def best_score(history: list[dict[str, Any]], metric: str) -> float:
    """The highest value of a metric so far."""
    return max((row[metric] for row in history if metric in row), default=-math.inf)


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops a run whose loss is NaN or infinite and saves the names of the batch's files."""

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Check the losses of this step."""
        bad = [
            name
            for name, value in (outputs or {}).items()
            if isinstance(value, torch.Tensor) and not torch.isfinite(value).all()
        ]
        if bad:
            report = Path(runner.work_dir) / "nonfinite_batch.json"
            epoch, iteration = runner.epoch + 1, batch_idx + 1
            found = dict(epoch=epoch, iteration=iteration, losses=bad, files=list(batch_paths(data_batch)))
            write_text(report, json.dumps(found, indent=1))
            raise VisionKitError(
                f"{', '.join(bad)} became NaN or infinite in epoch {epoch}, iteration {iteration}; the batch's files "
                f"are in {report}; lower the learning rate or look at those images"
            )


@HOOKS.register_module()
class ProgressHook(Hook):
    """A rich progress bar on a terminal; in a log, mmengine's plain lines are all there is."""

    bar = None

    def before_train(self, runner: Any) -> None:
        """Show the bar."""
        if not (sys.stderr.isatty() and is_main_process()):
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self.bar.start()
        self.task = self.bar.add_task(runner.experiment_name, total=runner.max_iters, completed=runner.iter, note="")

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Advance by one iteration."""
        if self.bar:
            note = f"loss {float(outputs['loss']):.3f}" if outputs and "loss" in outputs else ""
            self.bar.update(self.task, completed=runner.iter + 1, note=note)

    def close(self) -> None:
        """Stop drawing: called when training ends, in an error or not."""
        if self.bar:
            self.bar.stop()
