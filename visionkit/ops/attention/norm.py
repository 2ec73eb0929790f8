"""NormAttention of TransNormer."""

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.ops import dispatch
from visionkit.ops.attention._chunks import causal_linear
from visionkit.ops.attention._masks import by_rows, wide
from visionkit.ops.mala import elu_plus_one


def norm_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, window: int | None = None) -> Tensor:
    """y = norm(φ(q) (φ(k)ᵀ v)), φ = elu + 1, norm(x) = x √d / ‖x‖ per token: no denominator.

    Qin et al., The Devil in Linear Transformer, 2022, arXiv 2210.10340 (second-hand), where the late layers use it;
    the norm without parameters is that of the later code.

    Complexity: n d² time, d² state; sums are in float32. Not for outputs whose size carries meaning: all rows have
    length √d.

    Args:
        q, k: (B, H, N, D).
        v: (B, H, N, Dv).
        causal: key j is seen by query i only if j <= i; by chunks.
        window: ... only if |i - j| <= window; by explicit weights, n w d (inferred).

    Returns:
        (B, H, N, Dv).
    """
    if window is None and not causal and (kernel := dispatch.kernel("linear_attention", q, k, v)):
        return kernel(q, k, v, output="rms")
    dtype = v.dtype
    q, k, v = wide(q, k, v)
    q, k, v = elu_plus_one(q), elu_plus_one(k), v / k.shape[-2]
    if window is not None:
        y = by_rows(_products, q, k, v, causal=causal, window=window)
    else:
        y = causal_linear(q, k, v) if causal else q @ (k.mT @ v)
    return rms_norm(y).to(dtype)


def rms_norm(x: Tensor) -> Tensor:
    """x √d / ‖x‖ along the last axis; 0 stays 0."""
    return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5


def _products(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    return q @ k.mT if mask is None else torch.where(mask, q @ k.mT, 0)
