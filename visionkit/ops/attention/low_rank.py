"""Low-rank factorised attention through learned global queries."""

import torch
from torch import Tensor

from visionkit.ops.attention.softmax import softmax_attention
from visionkit.ops.gaussian import even_means

LANDMARKS = 16


def parameters(heads: int, head_dim: int) -> dict[str, Tensor]:
    """Learned global queries, (H, 16, D)."""
    return dict(landmarks=torch.randn(heads, LANDMARKS, head_dim))


def low_rank_attention(q: Tensor, k: Tensor, v: Tensor, *, landmarks: Tensor | None = None) -> Tensor:
    """y = softmax(q Lᵀ / √d) softmax(L kᵀ / √d) v with m landmarks L: weights of rank m whose rows sum to one.

    No single source: of the family of Set Transformer's inducing points (Lee et al., 2019, arXiv 1810.00825) and of
    Agent attention (Han et al., 2023, arXiv 2312.08874); this form is inferred.

    Complexity: n m d time. Not for weights of full rank, such as looking at one's own neighbours.

    Args:
        q, k: (B, H, N, D).
        v: (B, H, N, Dv).
        landmarks: L, (H, m, D), learned; None for averages of neighbouring queries (Agent attention), 49 of them.

    Returns:
        (B, H, N, Dv).
    """
    if landmarks is None:
        middle = even_means(q)
    else:
        middle = landmarks.to(q.dtype).expand(q.shape[0], -1, -1, -1)
    return softmax_attention(q, middle, softmax_attention(middle, k, v))
