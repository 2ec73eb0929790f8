"""Schedules of learning rates that several trainings share."""

from typing import Any


def warmup_cosine(warmup: int, total: int, first_share: float, last_rate: float) -> list[dict[str, Any]]:
    """Schedules, in steps: a linear warm-up, then a cosine, each for every group of parameters.

    Args:
        warmup: steps of the warm-up; 0 for none.
        total: steps of the training.
        first_share: share of the group's rate that the warm-up starts from.
        last_rate: rate that the cosine ends at.
    """
    linear = dict(type="LinearLR", start_factor=first_share, by_epoch=False, begin=0, end=warmup)
    cosine = dict(
        type="CosineAnnealingLR", eta_min=last_rate, by_epoch=False, begin=warmup, end=total, T_max=total - warmup
    )
    return [linear, cosine] if warmup else [cosine]
