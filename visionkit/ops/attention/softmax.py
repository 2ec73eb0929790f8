"""Softmax attention."""

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.ops.attention._masks import by_rows


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, window: int | None = None) -> Tensor:
    """y = softmax(q kᵀ / √d) v: what all others are compared with.

    Vaswani et al., Attention Is All You Need, 2017, arXiv 1706.03762. PyTorch's fused kernel, but for windows, which
    are computed by blocks of queries.

    Complexity: n² d time, n d memory (n w d time with a window). Not for many tokens.

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
    if window is None:
        # fused kernels want one width: zeros in q and k, or in v, change nothing
        width, scale, wide = v.shape[-1], q.shape[-1] ** -0.5, max(q.shape[-1], v.shape[-1])
        q, k, v = (F.pad(x, (0, wide - x.shape[-1])) if x.shape[-1] < wide else x for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)[..., :width]
    return by_rows(_weights, q, k, v, causal=causal, window=window)


def _weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)
