"""DHSA: dynamic hierarchical sparse attention."""

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.checks import check_counts
from visionkit.ops.attention._sparse import take_rows
from visionkit.ops.precision import wide

CHUNKS = 16  # at a time
SPAN = 8  # tokens on either side of a border that are compared


def dhsa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    chunk: int = 64,
    budget: int = 256,
    borders: Tensor | None = None,
) -> Tensor:
    """Softmax attention of each query over the ``budget`` keys of the chunks that suit its own chunk best.

    Chunks are stood for by mean · √length of their queries and of their keys; the products of these order the chunks,
    the query's own first and equal ones by their place, and their tokens are taken until the budget is spent.

    Xiong et al., Long-Context Modeling with Dynamic Hierarchical Sparse Attention for On-Device LLMs, 2025,
    arXiv 2510.24606. The paper learns where borders are; here they are where neighbouring keys differ most, see
    :func:`key_borders` (inferred, as is that the own chunk comes first and that a token always sees itself).

    Complexity: n²/chunk + n budget d. Not for training (the choice has no gradient), nor for attention that is spread
    over more keys than the budget. With budget >= n it is exact.

    How long chunks are follows from the keys: torch.compile makes one graph of it (but not of given borders), which
    Inductor refuses with ``fullgraph=True``; of meta tensors all chunks are taken to be as long as can be.

    Args:
        q, k: (B, H, N, D).
        v: (B, H, N, Dv).
        causal: key j is seen by query i only if j <= i.
        chunk: mean tokens of a chunk.
        budget: keys of a query.
        borders: (B, H, N) booleans, true where a chunk starts; None for ``key_borders``.

    Returns:
        (B, H, N, Dv).

    Raises:
        VisionKitError: ``chunk`` or ``budget`` below 1.
    """
    check_counts("", 1, chunk=chunk, budget=budget)
    n, dtype = k.shape[-2], v.dtype
    q, k, v = wide(q, k, v)
    with torch.no_grad():
        chunks = -(-n // chunk) if borders is None else None  # torch.compile cannot count
        borders = key_borders(k, chunk) if borders is None else borders
        lengths, keys = chosen_keys(q, k, borders, min(budget, n), causal, chunks)
    y = v.new_zeros(*v.shape[:2], n + 1, v.shape[-1])  # the last row takes what is filled up
    firsts = lengths.cumsum(-1) - lengths
    for first, length, index in zip(*(x.split(CHUNKS, dim=2) for x in (firsts, lengths, keys))):
        place = torch.arange(_largest(length, n), device=q.device)
        rows = (first[..., None] + place).clamp(max=n - 1)  # (B, H, chunks, L), of chunks filled up to one length
        out = _attend(take_rows(q, rows), k, v, rows, index, causal)
        target = rows.masked_fill(place >= length[..., None], n).flatten(2)[..., None]
        y = y.scatter_(2, target.expand(-1, -1, -1, v.shape[-1]), out.flatten(2, 3))
    return y[..., :n, :].to(dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, index: Tensor, causal: bool) -> Tensor:
    """Queries of some chunks (B, H, C, L, D) at ``rows`` (B, H, C, L) over the keys ``index`` (B, H, C, budget)."""
    scores = torch.cat([q @ take_rows(k, index).mT, (q * take_rows(k, rows)).sum(-1, keepdim=True)], dim=-1)
    index_, rows_ = index[..., None, :], rows[..., None]
    unseen = index_ > rows_ if causal else torch.zeros_like(scores[..., :-1], dtype=torch.bool)
    chosen = (index_ == rows_).any(-1, keepdim=True)  # the token itself, unless it is chosen anyway
    weights = (scores * q.shape[-1] ** -0.5).masked_fill(torch.cat([unseen, chosen], -1), -torch.inf).softmax(-1)
    return weights[..., :-1] @ take_rows(v, index) + weights[..., -1:] * take_rows(v, rows)


def key_borders(k: Tensor, chunk: int) -> Tensor:
    """(B, H, N) booleans: the n / chunk places where the means of the 8 keys before and after are least alike."""
    n = k.shape[-2]
    sums = F.pad(k.cumsum(-2), (0, 0, 1, 0))
    at = torch.arange(n, device=k.device)
    low, high = (at - SPAN).clamp(min=0), (at + SPAN).clamp(max=n)
    likeness = F.cosine_similarity(sums[..., at, :] - sums[..., low, :], sums[..., high, :] - sums[..., at, :], dim=-1)
    likeness[..., 0] = -torch.inf  # the first token starts a chunk
    index = likeness.argsort(dim=-1, stable=True)[..., : -(-n // chunk)]
    return torch.zeros_like(likeness, dtype=torch.bool).scatter(-1, index, True)


def chosen_keys(
    q: Tensor, k: Tensor, borders: Tensor, budget: int, causal: bool, chunks: int | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens of each chunk (B, H, chunks), and the keys that its queries take (B, H, chunks, budget).

    ``chunks`` is the largest number of borders, which is counted if it is not given.
    """
    chunk_of = borders.long().cumsum(-1)
    chunk_of = chunk_of - chunk_of[..., :1]
    chunks = _largest(chunk_of, chunk_of.shape[-1] - 1) + 1 if chunks is None else chunks
    lengths = torch.zeros_like(chunk_of[..., :chunks]).scatter_add(2, chunk_of, torch.ones_like(chunk_of))
    q_chunk, k_chunk = (_scaled_means(x, chunk_of, lengths) for x in (q, k))
    scores = q_chunk @ k_chunk.mT
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    scores.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    return lengths, _best_first(scores, lengths, budget)


def _best_first(scores: Tensor, lengths: Tensor, budget: int) -> Tensor:
    """Numbers of the first ``budget`` tokens (B, H, C, budget) of chunks in order of their scores (B, H, C, C)."""
    order = scores.argsort(dim=-1, descending=True, stable=True)  # topk takes equal ones as each device likes
    starts = lengths.cumsum(-1) - lengths
    lengths, starts = (x[:, :, None].expand_as(order).gather(-1, order) for x in (lengths, starts))
    ends = lengths.cumsum(-1)
    place = torch.arange(budget, device=scores.device).repeat(*ends.shape[:-1], 1)
    chunk = torch.searchsorted(ends, place, right=True)
    return place + (starts - (ends - lengths)).gather(-1, chunk)


def _largest(x: Tensor, most: int) -> int:
    """The largest number; ``most`` of meta tensors, which hold none."""
    return most if x.is_meta else int(x.max())


def _scaled_means(x: Tensor, chunk_of: Tensor, lengths: Tensor) -> Tensor:
    """mean · √length of each chunk, (B, H, chunks, D)."""
    total = x.new_zeros(*lengths.shape, x.shape[-1]).scatter_add(2, chunk_of[..., None].expand_as(x), x)
    return total / lengths.clamp(min=1).sqrt()[..., None]
