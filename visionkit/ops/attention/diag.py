"""DiagAttention of TransNormer: softmax attention in blocks."""

from torch import Tensor

from visionkit.checks import check_counts
from visionkit.ops.attention._masks import in_blocks
from visionkit.ops.attention.softmax import softmax_attention


def diag_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, block: int = 64) -> Tensor:
    """Softmax attention inside non-overlapping blocks of tokens.

    Qin et al., The Devil in Linear Transformer, 2022, arXiv 2210.10340 (second-hand; the block of 64 is inferred),
    where the early layers use it.

    Complexity: n w d for blocks of w. Not for a network's only mixing of tokens: blocks never meet.

    Args:
        q, k: (B, H, N, D).
        v: (B, H, N, Dv).
        causal: key j is seen by query i only if j <= i.
        block: tokens of a block; the last may be shorter.

    Returns:
        (B, H, N, Dv).

    Raises:
        VisionKitError: a ``block`` below 1.
    """
    check_counts("", 1, block=block)
    return in_blocks(softmax_attention, q, k, v, block, causal=causal)
