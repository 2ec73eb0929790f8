"""Softmax attention over chosen keys."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def to_blocks(x: Tensor, block: int) -> Tensor:
    """(..., N, D) -> (..., blocks, block, D), the last block filled with zeros."""
    blocks = math.ceil(x.shape[-2] / block)
    return F.pad(x, (0, 0, 0, blocks * block - x.shape[-2])).unflatten(-2, (blocks, block))


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Tokens by their numbers, (B, H, N, D), (B, H, ...) -> (B, H, ..., D)."""
    first = torch.arange(0, x.shape[:3].numel(), x.shape[2], device=x.device).view(*x.shape[:2], 1)
    rows = x.flatten(0, 2).index_select(0, (index.flatten(2) + first).flatten())
    return rows.view(*index.shape, x.shape[-1])


def block_means(x: Tensor, block: int) -> Tensor:
    """Means of blocks, (..., N, D) -> (..., blocks, D); the last block's over the tokens that it has."""
    folded = to_blocks(x, block)
    size = torch.full((folded.shape[-3], 1), float(block), dtype=x.dtype, device=x.device)
    size[-1] = x.shape[-2] - block * (folded.shape[-3] - 1)
    return folded.sum(-2) / size


def block_sparse_softmax(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block: int, causal: bool) -> Tensor:
    """Softmax attention of each block of queries over its chosen blocks of keys.

    Args:
        q, k: (B, H, N, D).
        v: (B, H, N, Dv).
        chosen: (B, H, blocks, blocks) booleans, query blocks first; if causal the diagonal must be chosen.
        block: tokens of a block.
        causal: key j is seen by query i only if j <= i.

    Returns:
        (B, H, N, Dv).
    """
    n = q.shape[-2]
    key_blocks, value_blocks = to_blocks(k, block), to_blocks(v, block)
    blocks = chosen.shape[-1]
    most = [blocks] * blocks if chosen.is_meta else chosen.sum(-1).amax(dim=(0, 1)).tolist()
    parts = []
    for i, count in enumerate(most):
        rows = torch.arange(i * block, min(n, (i + 1) * block), device=q.device)
        taken, index = chosen[:, :, i].to(torch.uint8).topk(count, dim=-1)  # (B, H, count), padded by unchosen ones
        columns = (index[..., None] * block + torch.arange(block, device=q.device)).flatten(-2)
        seen = taken.bool().repeat_interleave(block, dim=-1) & (columns < n)
        seen = seen[..., None, :]
        if causal:
            seen = seen & (columns[..., None, :] <= rows[:, None])
        keys, values = (_gather_blocks(x, index) for x in (key_blocks, value_blocks))
        scores = q[..., i * block : (i + 1) * block, :] @ keys.mT * q.shape[-1] ** -0.5
        parts.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values)
    return torch.cat(parts, dim=-2)


def _gather_blocks(x: Tensor, index: Tensor) -> Tensor:
    """(B, H, blocks, block, D), (B, H, count) -> (B, H, count * block, D)."""
    return x.gather(2, index[..., None, None].expand(*index.shape, *x.shape[-2:])).flatten(2, 3)
