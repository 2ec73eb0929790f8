"""Length-scaled softplus attention (LSSA), and its re-weighting (LSSAR)."""

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.checks import check_above, given
from visionkit.ops.attention._masks import by_rows

FLAT = 1e-5  # below it, what a weight exceeds the average by is rounding of single precision


def softplus_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    power: float | None = None,
) -> Tensor:
    """A = softplus(log d · log N_i · cos(q_i, k_j)), rows divided by their sums; y = A v.

    N_i is the number of tokens that query i sees. Re-weighting (LSSAR): A ← relu(A N_i - O)^power, rows divided again,
    with O = 1 (0 for the first three rows of the causal form), which drops all weights below the average. A row without
    a weight above it, of one token or of equal keys, stays as it was (inferred). Nothing is added to sums that divide.
    Gao and Spratling, Softplus Attention with Re-weighting Boosts Length Extrapolation in Large Language Models, 2025,
    arXiv 2501.13428; the constants are second-hand, from a re-implementation.

    Complexity: n² d time, n rows at a time in memory. Not for many tokens, and without re-weighting not for sharp
    attention: the paper derives log N_i from an entropy that length leaves alone, but of random keys the entropy still
    grows nearly as fast as that of uniform weights; with re-weighting, less than half as fast.

    Args:
        q, k: (B, H, N, D).
        v: (B, H, N, Dv).
        causal: key j is seen by query i only if j <= i.
        window: ... only if |i - j| <= window.
        power: None for LSSA; 15 for the paper's LSSAR.

    Returns:
        (B, H, N, Dv).

    Raises:
        VisionKitError: a negative ``window``, or a ``power`` of 0 or less.
    """
    check_above("", 0, **given(power=power))
    weigh = partial(softplus_weights, power=power)
    y = by_rows(weigh, q, k, v, causal=causal, window=window)
    if not causal or power is None:
        return y
    first = by_rows(partial(weigh, offset=0.0), q[..., :3, :], k, v, causal=causal, window=window)
    return torch.cat([first, y[..., 3:, :]], dim=-2)


def softplus_weights(
    q: Tensor, k: Tensor, mask: Tensor | None = None, *, power: float | None = None, offset: float = 1.0
) -> Tensor:
    """The weights (..., R, M) of queries (..., R, D) and keys (..., M, D), with ``offset`` for O; rows sum to one."""
    seen = q.new_tensor(k.shape[-2]) if mask is None else mask.sum(-1, keepdim=True).to(q.dtype)
    scores = math.log(q.shape[-1]) * seen.log() * (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT)
    weights = F.softplus(scores)
    weights = _rows(weights if mask is None else torch.where(mask, weights, 0))
    if power is None:
        return weights
    excess = (weights * seen - offset).relu()
    largest = excess.detach().amax(-1, keepdim=True)  # small powers of it would vanish
    flat = largest < FLAT
    return torch.where(flat, weights, _rows((excess / largest.masked_fill(flat, 1)) ** power + flat))


def _rows(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
