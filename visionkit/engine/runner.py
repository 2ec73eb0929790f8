"""mmengine's Runner with safe checkpoints, our loaders and training on CPU processes."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size, is_distributed, is_main_process
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from visionkit import __version__
from visionkit.engine.checkpoints import first_difference, load_checkpoint, save_checkpoint, state_dict_of
from visionkit.engine.config import building, plain
from visionkit.engine.loaders import build_eval_loader
from visionkit.engine.message_hub import message_hub_state, plain_message_hub
from visionkit.errors import VisionKitError


class VisionKitRunner(Runner):
    """A Runner whose checkpoints hold plain tensors and numbers alone and are read with ``weights_only``.

    ``meta`` holds the model's config as JSON, so that a checkpoint alone is enough to build its model again.
    """

    history: list[dict[str, Any]]
    """One row per finished epoch; part of every checkpoint."""

    position: dict[str, Any] | None
    """Where inside an epoch the checkpoint that was resumed from is; None where it is of a whole epoch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.history = []
        self.position = None
        super().__init__(*args, **kwargs)

    @staticmethod
    def build_dataloader(
        dataloader: dict | DataLoader, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Loaders for evaluation; the training loop builds its own."""
        return build_eval_loader(dataloader)

    def build_train_loop(self, loop: Any) -> Any:
        """The training loop with its loaders."""
        with building("train_cfg, train_dataloader"):
            return super().build_train_loop(loop)

    def build_val_loop(self, loop: Any) -> Any:
        """The validation loop with its loader and metrics."""
        with building("val_cfg, val_dataloader, val_evaluator"):
            return super().build_val_loop(loop)

    def build_test_loop(self, loop: Any) -> Any:
        """The test loop with its loader and metrics."""
        with building("test_cfg, test_dataloader, test_evaluator"):
            return super().build_test_loop(loop)

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """The optimiser, without mmengine's line for every parameter."""
        level = self.logger.level
        self.logger.setLevel("WARNING")
        try:
            with building("optim_wrapper"):
                return super().build_optim_wrapper(optim_wrapper)
        finally:
            self.logger.setLevel(level)

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """The schedules of learning rates."""
        with building("param_scheduler"):
            return super().build_param_scheduler(scheduler)

    @property
    def bare_model(self) -> nn.Module:
        """The model without its distributed wrapper."""
        return bare(self.model)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap for distributed training; on CPU processes no device is named."""
        if not self.distributed or torch.cuda.is_available() or model_wrapper_cfg is not None:
            return super().wrap_model(model_wrapper_cfg, model)
        return MMDistributedDataParallel(
            model.to(get_device()),
            broadcast_buffers=False,
            find_unused_parameters=self.cfg.get("find_unused_parameters", False),
        )

    def save_checkpoint(self, path: str | Path, position: dict[str, Any] | None = None) -> None:
        """Write weights, optimiser, schedules, logs and history; atomic, with a checksum. All processes call it.

        Args:
            path: The file.
            position: Further entries that a run needs to go on inside an epoch.
        """
        buffers = self._buffers_of_processes()
        if not is_main_process():
            return
        checkpoint = dict(
            meta=dict(
                epoch=self.epoch,
                iter=self.iter,
                seed=self.seed,
                visionkit=__version__,
                model=json.dumps(plain(self.cfg["model"])),
                image_size=list(self.cfg.get("image_size", [])),
            ),
            state_dict=self.bare_model.state_dict(),
            optimizer=self.optim_wrapper.state_dict(),
            param_schedulers=_scheduler_states(self.param_schedulers),
            message_hub=plain_message_hub(self.message_hub.state_dict()),
            history=self.history,
            **(dict(position=position) if position else {}),
            **(dict(buffers=buffers) if buffers else {}),
        )
        self.call_hook("before_save_checkpoint", checkpoint=checkpoint)
        # only now, for EMAHook puts its own weights there: they are to be read where there is no GPU too
        checkpoint["state_dict"] = {key: value.cpu() for key, value in checkpoint["state_dict"].items()}
        save_checkpoint(checkpoint, path)

    def load_checkpoint(self, filename: str, map_location: object = None) -> dict[str, Any]:
        """Read a checkpoint safely into the model; called by ``resume``. Raises VisionKitError if it does not fit."""
        # to the CPU wherever mmengine wants it: a GPU would hold everything twice, and wait in each step for Adam's
        # counters, which stay where they are read to
        checkpoint = load_checkpoint(filename)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        state = state_dict_of(checkpoint, filename)
        buffers = checkpoint.get("buffers", [])
        if len(buffers) == get_world_size():
            state = dict(state, **buffers[get_rank()])
        try:
            self.bare_model.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise VisionKitError(
                f"{filename}: does not fit the model any more ({first_difference(error)}); if the data or the number "
                "of processes changed since, start anew in another --work-dir"
            ) from error
        if "message_hub" in checkpoint:
            checkpoint["message_hub"] = message_hub_state(checkpoint["message_hub"])
        self.history = checkpoint.get("history", [])
        self.position = checkpoint.get("position")
        return checkpoint

    def average_batch_norms(self) -> None:
        """Give all processes the mean of their batch norms' statistics, for each evaluates a share of the images."""
        if not is_distributed():
            return
        for module in self.bare_model.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                all_reduce(module.running_mean, "mean")
                all_reduce(module.running_var, "mean")

    def _buffers_of_processes(self) -> list[dict[str, torch.Tensor]]:
        """Each process's buffers: statistics of batch norms and pools of images are not shared between processes."""
        if get_world_size() == 1:
            return []
        state = self.bare_model.state_dict()
        return all_gather_object(
            {name: state[name].cpu() for name, _ in self.bare_model.named_buffers() if name in state}
        )

    def get_hooks_info(self) -> str:
        """The order of the hooks, which mmengine writes into every log; of no use to a reader."""
        return ""

    def _log_env(self, env_cfg: dict) -> None:
        self.logger.info(
            f"seed {self.seed}, device {get_device()}, {get_world_size()} process(es), "
            f"{torch.get_num_threads()} threads, torch {torch.__version__}"
        )


def bare(model: nn.Module) -> nn.Module:
    """A model without its distributed wrapper."""
    return model.module if is_model_wrapper(model) else model


def _scheduler_states(schedulers: Any) -> Any:
    if isinstance(schedulers, dict):
        return {name: _scheduler_states(some) for name, some in schedulers.items()}
    return [scheduler.state_dict() for scheduler in schedulers or []]


PATIENCE = 6 * 3600  # seconds: the first process clusters or re-ranks a large data set while the others wait
LAUNCHERS = {  # what each sets for RANK, WORLD_SIZE and LOCAL_RANK, and how it starts a program
    "pytorch": (("RANK", "WORLD_SIZE", "LOCAL_RANK"), "torchrun --nproc-per-node 2 tools/train.py CONFIG"),
    "slurm": (("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"), "srun python tools/train.py CONFIG"),
    "mpi": (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        "mpirun python tools/train.py CONFIG",
    ),
}


def init_distributed(launcher: str) -> None:
    """Join the process group that ``torchrun``, Slurm or MPI has prepared: nccl on GPUs, gloo on CPUs.

    Raises:
        VisionKitError: the program was not started by that launcher.
    """
    if launcher == "none" or is_distributed():
        return
    names, command = LAUNCHERS[launcher]
    if missing := [name for name in names if name not in os.environ]:
        raise VisionKitError(
            f"--launcher {launcher}: {missing[0]} is not set; start it as `{command} --launcher {launcher}`"
        )
    if launcher != "slurm" or not torch.cuda.is_available():  # mmengine asks Slurm for the first node
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29500")
    for name, given in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), names):
        os.environ.setdefault(name, os.environ[given])  # mmengine reads LOCAL_RANK, which MPI's start does not set
    if torch.cuda.is_available():
        from mmengine.dist import init_dist

        init_dist(launcher, backend="nccl", timeout=PATIENCE)
        return
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE))
