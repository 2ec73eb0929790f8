"""Landmark attention: blocks of keys behind one landmark each."""

import torch
from torch import Tensor

from visionkit.checks import check_counts, given
from visionkit.ops.attention._sparse import block_means, to_blocks
from visionkit.ops.precision import wide

ROWS = 256
RETRIEVING_ROWS = 4096


def parameters(heads: int, head_dim: int) -> dict[str, Tensor]:
    """What is added to a block's mean key to make its landmark, (H, D)."""
    return dict(offset=torch.zeros(heads, head_dim))


def landmark_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    block: int = 50,
    retrieve: int | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """Grouped softmax: the weight of a token is its softmax within its block, times the block's among the landmarks.

    Causal: the tokens of the query's own block stand in one softmax with the landmarks of the blocks before. Weights of
    a row sum to one. With ``retrieve`` only the blocks with the best landmarks are read.

    Mohtashami and Jaggi, Landmark Attention: Random-Access Infinite Context Length for Transformers, 2023,
    arXiv 2305.16300. The paper has landmark tokens with keys of their own; here a landmark is its block's mean key plus
    a learned offset, and the form without a mask treats all blocks alike (both inferred).

    Complexity: n² d, or n (n / block + retrieve · block) d with retrieval. Not for short inputs.

    Args:
        q, k: (B, H, N, D).
        v: (B, H, N, Dv).
        causal: key j is seen by query i only if j <= i.
        block: tokens of a block.
        retrieve: blocks read per query (besides its own, if causal); None for all.
        offset: (H, D), learned; None for 0.

    Returns:
        (B, H, N, Dv).

    Raises:
        VisionKitError: ``block`` or ``retrieve`` below 1.
    """
    check_counts("", 1, block=block, **given(retrieve=retrieve))
    n, dtype, scale = k.shape[-2], v.dtype, q.shape[-1] ** -0.5
    q, k, v = wide(q, k, v)
    landmarks = block_means(k, block)
    landmarks = landmarks if offset is None else landmarks + offset.to(k)[:, None]
    keys, values, blocks = to_blocks(k, block), to_blocks(v, block), landmarks.shape[-2]
    missing = torch.arange(blocks * block, device=q.device).view(blocks, block) >= n
    own_scores = _own_scores(q, keys) * scale if causal else q[..., :0]
    count = blocks if retrieve is None else min(retrieve, blocks)
    size = ROWS if count == blocks else RETRIEVING_ROWS
    parts, own_weights = [], []
    for start in range(0, q.shape[-2], size):
        part, own = q[..., start : start + size, :], own_scores[..., start : start + size, :]
        groups = part @ landmarks.mT * scale  # (B, H, R, blocks)
        if causal:
            rows = torch.arange(start, start + part.shape[-2], device=q.device)
            groups = groups.masked_fill(torch.arange(blocks, device=q.device) >= rows[:, None] // block, -torch.inf)
        index = None
        if count < blocks:
            groups, index = groups.topk(count, dim=-1)
        shares, own = torch.cat([groups, own], dim=-1).softmax(-1).split([count, own.shape[-1]], dim=-1)
        own_weights.append(own)
        parts.append(
            _all_blocks(part, keys, values, shares, missing)
            if index is None
            else _retrieved_blocks(part, keys, values, shares, index, missing)
        )
    y = torch.cat(parts, dim=-2)
    if causal:
        y = y + (to_blocks(torch.cat(own_weights, dim=-2), block) @ values).flatten(2, 3)[..., :n, :]
    return y.to(dtype)


def _own_scores(q: Tensor, keys: Tensor) -> Tensor:
    """Scores of the tokens of the query's own block up to itself, (B, H, N, block)."""
    block = keys.shape[-2]
    later = torch.ones(block, block, dtype=torch.bool, device=q.device).triu(1)
    scores = (to_blocks(q, block) @ keys.mT).masked_fill(later, -torch.inf)
    return scores.flatten(2, 3)[..., : q.shape[-2], :]


def _all_blocks(q: Tensor, keys: Tensor, values: Tensor, shares: Tensor, missing: Tensor) -> Tensor:
    """Softmax inside all blocks, weighed by the blocks' shares."""
    scores = (q @ keys.flatten(2, 3).mT).unflatten(-1, keys.shape[2:4]) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(missing, -torch.inf).softmax(-1) * shares[..., None]
    return weights.flatten(-2) @ values.flatten(2, 3)


def _retrieved_blocks(
    q: Tensor, keys: Tensor, values: Tensor, shares: Tensor, index: Tensor, missing: Tensor
) -> Tensor:
    """The same over the blocks of ``index`` (B, H, R, count): block by block, each with the queries that read it."""
    blocks, scale = keys.shape[2], q.shape[-1] ** -0.5
    first = torch.arange(0, keys.shape[:3].numel(), blocks, device=q.device).view(*q.shape[:2], 1, 1)
    block_of = (index + first).flatten()
    order = block_of.argsort()
    readers = order // index.shape[-1]
    counts = block_of.bincount(minlength=keys.shape[:3].numel()).tolist()
    y = values.new_zeros(q.shape[:3].numel(), values.shape[-1])
    each = (x.split(counts) for x in (readers, q.flatten(0, 2)[readers], shares.flatten()[order, None]))
    for number, (rows, part, share) in enumerate(zip(*each)):
        if len(rows):
            place = number // blocks // q.shape[1], number // blocks % q.shape[1], number % blocks
            scores = (part @ keys[place].mT * scale).masked_fill(missing[place[-1]], -torch.inf)
            read = (scores.softmax(-1) * share) @ values[place]
            y = y.index_add_(0, rows, read.to(y.dtype))  # autocast takes products in half precision
    return y.view(*q.shape[:3], -1)
