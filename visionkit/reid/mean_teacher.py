"""The mean teacher: an exponential moving average of the student with MMT's warm-up (arXiv 2001.01526)."""

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from visionkit.engine.runner import bare
from visionkit.errors import VisionKitError
from visionkit.registry import HOOKS

BUFFER_POLICIES = ("own", "copy", "average")
PUBLISHED_LIMIT, PUBLISHED_STEPS = 0.999, 32_000


def ema_limit(steps: int) -> float:
    """The limit of [ema_alpha] for a run of so many steps: the teacher remembers the same share of any run.

    The papers' 0.999 is a memory of 1 000 of their 32 000 steps. A shorter run with that limit would end within the
    warm-up, where the teacher is a plain mean of every student since the start.
    """
    share = (1 - PUBLISHED_LIMIT) * PUBLISHED_STEPS
    return max(0.0, 1 - share / min(max(steps, share), PUBLISHED_STEPS))


def ema_alpha(step: int, limit: float = PUBLISHED_LIMIT) -> float:
    """alpha_t = min(1 - 1 / (t + 1), limit): 0 at step 0, so that the student is first copied outright."""
    return min(1 - 1 / (step + 1), limit)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, alpha: float, buffers: str = "own") -> None:
    """teacher <- alpha * teacher + (1 - alpha) * student, in place.

    Args:
        teacher: network that is changed in place.
        student: network of the same architecture.
        alpha: share of the teacher that stays, 0 to 1.
        buffers: treatment of the batch norms' statistics: ``own`` leaves the teacher's alone (released code), ``copy``
            takes the student's, ``average`` averages them like the parameters; counters are then copied.
    """
    _lerp(list(teacher.parameters()), list(student.parameters()), 1 - alpha)
    if buffers == "own":
        return
    ours, theirs = list(teacher.buffers()), list(student.buffers())
    averaged = [i for i, each in enumerate(ours) if buffers == "average" and each.is_floating_point()]
    _lerp([ours[i] for i in averaged], [theirs[i] for i in averaged], 1 - alpha)
    for i in set(range(len(ours))) - set(averaged):
        ours[i].copy_(theirs[i])


def _lerp(ours: list[torch.Tensor], theirs: list[torch.Tensor], weight: float) -> None:
    if ours:
        torch._foreach_lerp_(ours, theirs, weight)


@HOOKS.register_module()
class MeanTeacherHook(Hook):
    """Moves the teacher after every optimiser step by the model's ``update_teacher()``."""

    def before_train(self, runner: Runner) -> None:
        """Raises VisionKitError if the model has no teacher to move."""
        if not hasattr(bare(runner.model), "update_teacher"):
            name = type(bare(runner.model)).__name__
            raise VisionKitError(f"MeanTeacherHook: {name} has no update_teacher(); use it with visionkit.CoreReID")

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """One step of the average."""
        bare(runner.model).update_teacher()
