"""Calibration of attention sinks (ACT): what is done to the weights."""

from typing import NamedTuple

import torch
from torch import Tensor

from visionkit.checks import check_counts


class Calibrated(NamedTuple):
    """weights (..., N, M), rows still summing to one; sinks (..., M) booleans; received (..., M), mean over queries."""

    weights: Tensor
    sinks: Tensor
    received: Tensor


def calibrate_sinks(weights: Tensor, *, threshold: float = 0.1, beta: float = 0.4, skip: int = 1) -> Calibrated:
    """Takes attention from sinks and gives it to the other keys in proportion to what they have.

    A sink is a key that receives more than ``threshold`` on average over the queries. Its weights become β times what
    they were; the removed (1 - β) of them goes to the other keys of the row.

    Yu et al., Unveiling and Harnessing Hidden Attention Sinks: Enhancing Large Language Models without Training through
    Attention Calibration, 2024, arXiv 2406.15765. The released code does so only in chosen heads of layers 2 to 30.

    Args:
        weights: (..., N, M), rows that sum to one.
        threshold: mean attention, over the queries, above which a key is a sink.
        beta: share that a sink keeps.
        skip: first keys that are never sinks (the class token).

    Raises:
        VisionKitError: a negative ``skip``.
    """
    check_counts("", 0, skip=skip)
    received = weights.mean(dim=-2)
    sinks = received > threshold
    sinks[..., :skip] = False
    sunk = (weights * sinks[..., None, :]).sum(dim=-1, keepdim=True)
    others = weights.sum(dim=-1, keepdim=True) - sunk
    gain = 1 + (1 - beta) * sunk / others
    calibrated = weights * torch.where(sinks[..., None, :], beta, gain)
    # a row that looks at sinks alone has nowhere to give its attention
    return Calibrated(calibrated.where(others > 1e-6, weights), sinks, received)
