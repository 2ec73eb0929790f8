"""Sigmoid attention."""

import math

import torch
from torch import Tensor

from visionkit.ops import dispatch
from visionkit.ops.attention._masks import by_rows


def sigmoid_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, window: int | None = None) -> Tensor:
    """y = σ(q kᵀ / √d + b) v with b = -log n, rows not normalised.

    Ramapuram et al., Theory, Analysis, and Best Practices for Sigmoid Self-Attention, 2024, arXiv 2409.04431. With
    zero scores a row sums to n / (n + 1), so that training starts near softmax. n is the number of keys, with a window
    2 w + 1 (the paper has no window: inferred).

    Complexity: n² d time, n rows at a time in memory. Not an approximation of a trained softmax, and not for lengths
    far from the training length, for the bias depends on it.

    Args:
        q, k: (B, H, N, D).
        v: (B, H, N, Dv).
        causal: key j is seen by query i only if j <= i.
        window: ... only if |i - j| <= window.

    Returns:
        (B, H, N, Dv).

    Raises:
        VisionKitError: a negative ``window``.
    """
    if window is None and (kernel := dispatch.kernel("sigmoid_attention", q, k, v)):
        return kernel(q, k, v, causal=causal)
    n = k.shape[-2] if window is None else min(k.shape[-2], 2 * window + 1)

    def weigh(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        weights = torch.sigmoid(q @ k.mT * q.shape[-1] ** -0.5 - math.log(n))
        return weights if mask is None else weights * mask

    return by_rows(weigh, q, k, v, causal=causal, window=window)
