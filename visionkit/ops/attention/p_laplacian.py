"""The p-Laplacian message passing of p-Adapters."""

import torch
from torch import Tensor

from visionkit.checks import check_above

EPS = 1e-6


def p_laplacian(weights: Tensor, features: Tensor, mu: Tensor | float, p: float = 1.25) -> Tensor:
    """One step of p-Laplacian smoothing of token features over the graph of attention weights.

    g_ij = ‖√A_ij (F_i - F_j)‖^(p - 2), Ã = A ⊙ g, α_i = 1 / (Σ_j Ã_ij + 2 μ / p), β_i = α_i 2 μ / p, and
    F' = α Ã F + β F. With p = 2 it is plain averaging, (A F + μ F) / (1 + μ); a smaller p favours neighbours that are
    alike. Norms are kept above 1e-3, where the paper's code adds a small number to A (inferred: a token and itself do
    not differ at all).

    Wu et al., p-Laplacian Adaptation for Generative Pre-trained Vision-Language Models, 2024, arXiv 2312.10613.

    Complexity: n² r. Not for wide features: it is meant for the narrow middle of an adapter.

    Args:
        weights: A, (B, N, N), rows that sum to one.
        features: F, (B, N, R).
        mu: share of the token itself, above 0.
        p: exponent, above 1.

    Returns:
        (B, N, R).

    Raises:
        VisionKitError: p of 1 or less.
    """
    check_above("", 1, p=p)
    squared = (features[..., :, None, :] - features[..., None, :, :]).square().sum(-1)
    graph = weights * (weights * squared + EPS) ** ((p - 2) / 2)
    alpha = 1 / (graph.sum(-1, keepdim=True) + 2 * mu / p)
    return alpha * (graph @ features) + alpha * (2 * mu / p) * features


def strength(theta: Tensor) -> Tensor:
    """μ of a learned θ: (2 + tanh θ) / 10."""
    return 0.1 * (2 + torch.tanh(theta))
