"""FlexPrefill: a sparse pattern chosen for each head from the input."""

import torch
from torch import Tensor

from visionkit.checks import check_counts
from visionkit.ops.attention._sparse import block_means, block_sparse_softmax, to_blocks
from visionkit.ops.precision import wide


def flex_prefill_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    block: int = 128,
    tau: float = 0.1,
    gamma: float = 0.9,
    min_budget: int = 512,
) -> Tensor:
    """Softmax attention over the blocks of keys that hold a share γ of the attention, see :func:`chosen_blocks`.

    Lai et al., FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient Long-Sequence Inference, 2025,
    arXiv 2502.20766. The paper is causal; the form without a mask is inferred.

    Complexity: n² d at worst, n times the chosen keys as a rule, plus (n / block)² for the choice. Not for training
    (the choice has no gradient), nor for inputs whose attention is spread: then nearly all is chosen.

    How many keys are read follows from the input: torch.compile makes one graph of it, which Inductor refuses with
    ``fullgraph=True``; meta tensors are taken to read all.

    Args:
        q, k: (B, H, N, D).
        v: (B, H, N, Dv).
        causal: key j is seen by query i only if j <= i.
        block: tokens of a block.
        tau: √JS divergence below which a head's block means are trusted.
        gamma: share of the attention to cover; 1 is exact.
        min_budget: fewest tokens that a choice holds.

    Returns:
        (B, H, N, Dv).

    Raises:
        VisionKitError: a ``block`` below 1, or a negative ``min_budget``.
    """
    check_counts("", 1, block=block)
    check_counts("", 0, min_budget=min_budget)
    dtype = v.dtype
    q, k, v = wide(q, k, v)
    with torch.no_grad():
        chosen = chosen_blocks(q, k, causal=causal, block=block, tau=tau, gamma=gamma, min_budget=min_budget)
    return block_sparse_softmax(q, k, v, chosen, block, causal).to(dtype)


def chosen_blocks(
    q: Tensor, k: Tensor, *, causal: bool, block: int, tau: float, gamma: float, min_budget: int
) -> Tensor:
    """Which blocks of keys each block of queries sees, (B, H, blocks, blocks).

    The last block of queries is attended in full. Where its attention over blocks of keys is within τ (root of the
    Jensen-Shannon divergence) of that of the blocks' means, the head is *query-aware*: the means' attention, all query
    blocks together, is covered to γ. Otherwise the head is *vertical-slash*: the last block's columns and its diagonals
    are each covered to γ and continued upwards; blocks that these touch are chosen whole (inferred). First column and
    diagonal are always chosen.
    """
    n, blocks = k.shape[-2], -(-k.shape[-2] // block)
    scale = q.shape[-1] ** -0.5
    start = (blocks - 1) * block
    distance = torch.arange(start, n, device=q.device)[:, None] - torch.arange(n, device=q.device)
    scores = q[..., start:, :] @ k.mT * scale
    last = (scores.masked_fill(distance < 0, -torch.inf) if causal else scores).softmax(-1)  # (B, H, R, N)

    q_mean, k_mean = block_means(q, block), block_means(k, block)
    scores = q_mean @ k_mean.mT * scale
    future = torch.ones(blocks, blocks, dtype=torch.bool, device=q.device).triu(1)
    pooled = (scores.masked_fill(future, -torch.inf) if causal else scores).softmax(-1)

    true = to_blocks(last.mean(-2)[..., None], block).sum((-1, -2))
    trusted = js_divergence(true, pooled[..., -1, :]).sqrt() < tau
    least = blocks * -(-min_budget // block)
    aware = smallest_set(pooled.flatten(-2), gamma, least).view_as(pooled)
    columns = smallest_set(last.sum(-2), gamma, min_budget)
    by_distance = last.new_zeros(*last.shape[:2], n)
    by_distance.index_add_(-1, distance.abs().flatten(), last.flatten(-2))
    slashes = smallest_set(by_distance, gamma, min_budget)
    vertical = to_blocks(columns[..., None], block).any(-1).any(-1)[..., None, :] | _slash_blocks(
        slashes, block, blocks
    )
    chosen = torch.where(trusted[..., None, None], aware, vertical)
    chosen = chosen | torch.eye(blocks, dtype=torch.bool, device=q.device)
    chosen[..., 0] = True
    return chosen & ~future if causal else chosen


def smallest_set(scores: Tensor, gamma: float, least: int = 1) -> Tensor:
    """Scores (..., N) -> booleans (..., N): the fewest entries with a share gamma of the sum, at least ``least``."""
    if gamma >= 1:
        return torch.ones_like(scores, dtype=torch.bool)
    value, index = scores.sort(dim=-1, descending=True)
    before = value.cumsum(-1) - value
    keep = before < gamma * value.sum(-1, keepdim=True)
    keep[..., :least] = True
    return torch.zeros_like(keep).scatter(-1, index, keep)


def js_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of distributions (..., N) -> (...), in nats; at most log 2."""
    middle = (p + q) / 2
    kl = lambda a: torch.special.xlogy(a, a / middle.clamp(min=torch.finfo(a.dtype).tiny)).sum(-1)
    return ((kl(p) + kl(q)) / 2).clamp(min=0)


def _slash_blocks(slashes: Tensor, block: int, blocks: int) -> Tensor:
    """Blocks that the chosen distances (B, H, N) touch, on both sides of the diagonal."""
    distances = torch.arange(slashes.shape[-1], device=slashes.device)
    touched = torch.zeros(*slashes.shape[:-1], blocks + 1, dtype=torch.int32, device=slashes.device)
    for steps in (distances // block, (distances + block - 1) // block):
        touched.index_add_(-1, steps, slashes.int())
    row = torch.arange(blocks, device=slashes.device)
    return touched[..., (row[:, None] - row).abs()] > 0
