"""Gaussian adaptive attention (GAAM)."""

import torch
from torch import Tensor

from visionkit.ops.precision import wide

GAUSSIANS = 3


def parameters(heads: int, head_dim: int) -> dict[str, Tensor]:
    """Offsets (H, K) at 0 and widths (H, K) at exp of normal draws: 2 K numbers a head."""
    return dict(offset=torch.zeros(heads, GAUSSIANS), width=torch.randn(heads, GAUSSIANS).exp())


def gaam_attention(
    q: Tensor, k: Tensor, v: Tensor, *, offset: Tensor | None = None, width: Tensor | None = None
) -> Tensor:
    """y = v ⊙ G(k): each token is weighed by how near its key's channels lie to learned offsets from the mean.

    Per head and channel, over the tokens: μ, σ² (unbiased, 0 of a single token, + 1e-8); for each of K Gaussians
    y = (x - (μ + δ)) / σ, g = exp(-y² / 2c²) / √(2π c²); G is the product of the K, divided by its sum over the tokens
    (so that the root cancels).

    Ioannides, Chadha and Elkins, Gaussian Adaptive Attention is All You Need, 2024, arXiv 2401.11143. The paper has one
    x in place of k and v, and no q. That keys may differ from values is this library's addition; q is not used.

    Complexity: n d K. Not for relations between tokens: they meet only in the mean and the variance.

    Args:
        q: (B, H, N, D), not used.
        k: (B, H, N, D).
        v: (B, H, N, D).
        offset: δ, (H, K); None for one Gaussian at 0.
        width: c, (H, K); None for 1.

    Returns:
        (B, H, N, D). The weights of a channel sum to one over the tokens.
    """
    return (gaussian_weights(k, offset, width) * wide(v)[0]).to(v.dtype)


def gaussian_weights(x: Tensor, offset: Tensor | None, width: Tensor | None) -> Tensor:
    """G of shape (B, H, N, D), which sums to one over the tokens."""
    (x,) = wide(x)
    offset = x.new_zeros(x.shape[1], 1) if offset is None else offset.to(x.dtype)
    width = torch.ones_like(offset) if width is None else width.to(x.dtype)
    mean = x.mean(dim=-2, keepdim=True)
    correction = min(1, x.shape[-2] - 1)  # a single token has no unbiased variance
    deviation = (x.var(dim=-2, keepdim=True, correction=correction) + 1e-8).sqrt()
    log_product = torch.zeros_like(x)
    for delta, c in zip(offset.unbind(-1), width.unbind(-1)):
        delta, c = delta[:, None, None], c[:, None, None]
        y = (x - (mean + delta)) / deviation
        log_product = log_product - y.square() / (2 * c.square())
    return log_product.softmax(dim=-2)
