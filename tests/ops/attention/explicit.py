"""What the tests of attention share: inputs, and weights written out as N x N matrices."""

import math

import torch


def qkv(n=37, d=8, heads=3, batch=2, dtype=torch.float64, seed=0, dv=None):
    r = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, heads, n, m, dtype=dtype, generator=r) for m in (d, d, dv or d))


def visible(n, mask, window=256):
    """(N, N) booleans of the masks that ``attend`` names."""
    i, j = torch.arange(n)[:, None], torch.arange(n)
    return dict(
        full=(i >= 0) & (j >= 0), causal=j <= i, window=(i - j).abs() <= window, block=i // window == j // window
    )[mask]


def masked_softmax(scores, mask):
    return scores.masked_fill(~mask, -math.inf).softmax(-1)


def elu1(x):
    return torch.where(x > 0, x + 1, x.exp())
