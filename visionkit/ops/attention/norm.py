"""NormAttention of TransNormer."""

from torch import Tensor

from visionkit.ops.attention.linear import linear_attention


def norm_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, window: int | None = None) -> Tensor:
    """y = norm(φ(q) (φ(k)ᵀ v)), φ = elu + 1, norm(x) = x √d / ‖x‖ per token: no denominator.

    Qin et al., The Devil in Linear Transformer, 2022, arXiv 2210.10340 (second-hand), where the late layers use it;
    the norm without parameters is that of the later code.

    Complexity: n d² time, d² state; sums are in float32. Not for outputs whose size carries meaning: all rows have
    length √d. Other φ: :func:`visionkit.ops.attention.linear.linear_attention` with ``output="rms"``.

    Args:
        q, k: (B, H, N, D).
        v: (B, H, N, Dv).
        causal: key j is seen by query i only if j <= i; by chunks.
        window: ... only if |i - j| <= window; by explicit weights, n w d (inferred).

    Returns:
        (B, H, N, Dv).

    Raises:
        VisionKitError: a negative ``window``.
    """
    return linear_attention(q, k, v, causal=causal, window=window, output="rms")
