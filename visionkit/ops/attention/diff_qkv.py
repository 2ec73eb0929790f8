"""DiffQKV: queries, keys and values of different numbers and widths of heads."""

import torch
from torch import Tensor

from visionkit.errors import VisionKitError
from visionkit.ops.attention.softmax import softmax_attention


def parameters(heads: int, head_dim: int) -> dict[str, Tensor]:
    """Maps of queries to half as many channels, those of the keys, (H, D, D / 2)."""
    return dict(narrow=torch.randn(heads, head_dim, max(1, head_dim // 2)) * head_dim**-0.5)


def diff_qkv_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    narrow: Tensor | None = None,
) -> Tensor:
    """Softmax attention in which keys may have fewer heads than values, and thinner ones than queries.

    Each head of keys or values serves a run of neighbouring heads of queries. Wide ("augmented") queries are brought
    to the keys' width by a learned map. So what must be kept of the past is small, its keys above all.

    Lin et al., Sigma: Differential Rescaling of Query, Key and Value for Efficient Language Models, 2025,
    arXiv 2501.13629 (second-hand; the map of the queries is inferred).

    Complexity: n² d. Not a way to fewer operations per pair; it saves memory of keys and values.

    Args:
        q: (B, H, N, D).
        k: (B, Hk, N, Dk), Hk a divisor of H. If wider than ``narrow`` maps to, its first channels are used: so the
            mechanism can be tried in a layer whose projections are all alike.
        v: (B, Hv, N, Dv), Hv a divisor of H.
        causal: key j is seen by query i only if j <= i.
        window: ... only if |i - j| <= window.
        narrow: (H, D, Dk); None where D = Dk.

    Returns:
        (B, H, N, Dv).

    Raises:
        VisionKitError: heads that do not divide those of the queries; a negative ``window``.
    """
    if q.shape[1] % k.shape[1] or q.shape[1] % v.shape[1]:
        heads = f"{k.shape[1]} heads of keys and {v.shape[1]} of values"
        raise VisionKitError(f"diff_qkv: {heads}; each must divide the {q.shape[1]} heads of queries")
    if narrow is not None:
        q, k = q @ narrow.to(q.dtype), k[..., : narrow.shape[-1]]
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return softmax_attention(q, k, v, causal=causal, window=window)
