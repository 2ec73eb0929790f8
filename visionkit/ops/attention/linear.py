"""Linear attention."""

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.ops import dispatch
from visionkit.ops.attention._chunks import causal_linear
from visionkit.ops.attention._masks import by_rows, wide
from visionkit.ops.mala import elu_plus_one

EPS = 1e-6


def linear_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, window: int | None = None) -> Tensor:
    """y_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / (φ(q_i) · Σ_j φ(k_j)), φ = elu + 1.

    Katharopoulos et al., Transformers are RNNs, 2020, arXiv 2006.16236.

    Complexity: n d² time, d² state; sums are in float32. Not for tasks that need sharp weights: scaling q changes
    little, and the rank of the weights is at most d.

    Args:
        q, k: (B, H, N, D).
        v: (B, H, N, Dv).
        causal: key j is seen by query i only if j <= i; by chunks.
        window: ... only if |i - j| <= window; by explicit weights, n w d.

    Returns:
        (B, H, N, Dv).
    """
    if window is not None:
        return by_rows(_weights, q, k, v, causal=causal, window=window)
    if not causal and (kernel := dispatch.kernel("linear_attention", q, k, v)):
        return kernel(q, k, v, eps=EPS)
    dtype = v.dtype
    q, k, v = wide(q, k, v)
    q, k, v = elu_plus_one(q), elu_plus_one(k), F.pad(v, (0, 1), value=1.0)  # the last channel sums the weights
    y = causal_linear(q, k, v) if causal else q @ (k.mT @ (v / k.shape[-2]))
    eps = EPS if causal else EPS / k.shape[-2]
    return (y[..., :-1] / (y[..., -1:] + eps)).to(dtype)


def _weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    weights = elu_plus_one(q) @ elu_plus_one(k).mT
    weights = weights if mask is None else torch.where(mask, weights, 0)
    return weights / (weights.sum(-1, keepdim=True) + EPS)
