"""The training loop: named loaders, a seed per epoch, validation before the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from mmengine.dist import all_gather_object, get_rank, get_world_size, is_distributed
from mmengine.runner import EpochBasedTrainLoop, Runner

from visionkit.checks import check_counts
from visionkit.engine.loaders import NamedLoaders
from visionkit.engine.seeds import rng_state, seed_everything, set_rng_state
from visionkit.engine.stopping import Interrupted, asked, finishing
from visionkit.registry import LOOPS


@LOOPS.register_module()
class NamedLoadersTrainLoop(EpochBasedTrainLoop):
    """Trains for ``max_epochs`` epochs of ``iters_per_epoch`` iterations on ``{name: batch}`` batches.

    Each epoch starts from seeds of its own, and its checkpoint is written after its validation, so that an epoch that
    was killed is wholly done again. On SIGTERM a checkpoint inside the epoch is written; the run goes on from there.

    Hooks may define ``after_epoch_complete(runner)``: it runs last. A hook that sets up something for an epoch defines
    ``epoch_state(runner)``, a dictionary of tensors and numbers, and ``load_epoch_state(runner, state)``, which takes
    the place of ``before_train_epoch`` when a run goes on inside an epoch.

    Args:
        runner: The runner.
        dataloader: The loaders of :class:`~visionkit.engine.loaders.NamedLoaders`.
        max_epochs: Number of epochs.
        iters_per_epoch: Iterations of one epoch.
        val_interval: Epochs between validations; the last epoch is always validated.
    """

    def __init__(
        self, runner: Runner, dataloader: dict[str, Any], max_epochs: int, iters_per_epoch: int, val_interval: int = 1
    ) -> None:
        check_counts("train_cfg", 1, max_epochs=max_epochs, iters_per_epoch=iters_per_epoch, val_interval=val_interval)
        self.dataloaders = NamedLoaders(dataloader, iters_per_epoch, seed=runner.seed)
        super().__init__(runner, self.dataloaders, max_epochs, val_interval=val_interval)

    def run(self) -> Any:
        """Train to the end and return the model.

        Raises:
            Interrupted: SIGTERM arrived; what was done of the epoch is in a checkpoint.
        """
        self.runner.call_hook("before_train")
        done = self._go_on()
        while self._epoch < self._max_epochs or done:
            if done == 0:
                self._begin_epoch()
            with finishing():
                if done < len(self.dataloaders):
                    self._train_from(done)
                self._validate()
                self.runner.call_hook("after_epoch_complete")
            if asked():
                raise Interrupted
            done = 0
        self.runner.call_hook("after_train")
        return self.runner.model

    def _begin_epoch(self) -> None:
        """Seeds and labels of an epoch. A stop in here loses nothing but this."""
        self.dataloaders.epoch = self._epoch
        seed_everything(self.runner.seed, self._epoch, get_rank())
        self.runner.call_hook("before_train_epoch")

    def _train_from(self, start: int) -> None:
        """The epoch's iterations from number ``start`` on."""
        self.runner.model.train()
        for number, batch in enumerate(self.dataloaders.batches_from(start), start):
            self.run_iter(number, batch)
            if number + 1 < len(self.dataloaders) and asked():
                self._stop(number + 1)
        self.runner.average_batch_norms()
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def _validate(self) -> None:
        if self.runner.val_loop is None or not self._validation_is_due():
            return
        if asked():
            self._stop(len(self.dataloaders))
        try:
            with finishing(until_done=is_distributed()):  # processes cannot leave one by one
                self.runner.val_loop.run()
        except Interrupted:
            self._stop(len(self.dataloaders))

    def _stop(self, iteration: int) -> NoReturn:
        """Write all that the rest of the epoch depends on, and end."""
        epoch = self.dataloaders.epoch
        hooks = {
            type(hook).__name__: hook.epoch_state(self.runner)
            for hook in self.runner.hooks
            if hasattr(hook, "epoch_state")
        }
        position = dict(epoch=epoch, iteration=iteration, hooks=hooks, rng=all_gather_object(rng_state()))
        self.runner.save_checkpoint(Path(self.runner.work_dir) / f"epoch_{epoch}_iter_{iteration}.pth", position)
        raise Interrupted

    def _go_on(self) -> int:
        """Take up an epoch that :meth:`_stop` left; returns how many of its iterations are done."""
        position = self.runner.position
        if position is None:
            return 0
        self.dataloaders.epoch = position["epoch"]
        seed_everything(self.runner.seed, position["epoch"], get_rank())
        for hook in self.runner.hooks:
            state = position["hooks"].get(type(hook).__name__)
            if state is None:
                hook.before_train_epoch(self.runner)
            else:
                hook.load_epoch_state(self.runner, state)
        if len(position["rng"]) == get_world_size():
            set_rng_state(position["rng"][get_rank()])
        return position["iteration"]

    def _validation_is_due(self) -> bool:
        return self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
