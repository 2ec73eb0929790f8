"""HyperAttention: exact softmax in blocks of similar tokens, and sampled keys for the rest."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.checks import check_counts
from visionkit.ops.attention._sparse import take_rows
from visionkit.ops.precision import wide

PROJECTIONS = 7
BLOCKS, ROWS = 16, 4096  # at a time


class Part(NamedTuple):
    """Softmax over some of the keys: output (..., N, Dv) and log of the sum of exponentials (..., N, 1)."""

    out: Tensor
    lse: Tensor


def hyper_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    block: int = 256,
    samples: int = 256,
    min_length: int = 4096,
    generator: torch.Generator | None = None,
) -> Tensor:
    """An estimate of softmax attention in near-linear time.

    1. Angular hashing: the signs of 7 random projections, read as a Gray code, number the buckets so that neighbouring
       buckets differ in one sign. Queries and keys are each sorted by bucket.
    2. Exact softmax inside aligned blocks of the sorted order.
    3. ``samples`` keys drawn evenly, their scores raised by log(n / samples), but for those of the query's own block.
    4. Both parts are merged by their log-sum-exp.

    The causal form splits the tokens in halves: each half by itself, and the second half over the first without a mask.
    Below ``min_length`` tokens, or with samples = n, it is exact; the second because keys are drawn without replacement
    (the released code: with).

    Han et al., HyperAttention: Long-context Attention in Near-Linear Time, 2023, arXiv 2310.05869.

    Complexity: n (block + samples) d time, times log n if causal. Not for attention that hangs on a few far keys: those
    are missed unless they share the query's block.

    Args:
        q, k: (B, H, N, D).
        v: (B, H, N, Dv).
        causal: key j is seen by query i only if j <= i.
        block: tokens of a block in the sorted order.
        samples: keys drawn for all queries of a head.
        min_length: fewest keys for which anything is estimated.
        generator: source of projections and samples.

    Returns:
        (B, H, N, Dv).

    Raises:
        VisionKitError: ``block`` or ``samples`` below 1.
    """
    check_counts("", 1, block=block, samples=samples)
    dtype = v.dtype

    def estimate(q: Tensor, k: Tensor, v: Tensor) -> Part:
        if k.shape[-2] < min_length:
            return _softmax(q, k, v)
        return _merge(*_estimates(q, k, v, block, samples, generator))

    def halves(q: Tensor, k: Tensor, v: Tensor) -> Part:
        n = k.shape[-2]
        if n < max(2, min_length):
            later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
            return _softmax(q, k, v, torch.zeros_like(later, dtype=q.dtype).masked_fill(later, -torch.inf))
        (q1, q2), (k1, k2), (v1, v2) = (x.split([n // 2, n - n // 2], dim=-2) for x in (q, k, v))
        first, second = halves(q1, k1, v1), _merge(halves(q2, k2, v2), estimate(q2, k1, v1))
        return _join(-2, (first, second))

    return (halves if causal else estimate)(*wide(q, k, v)).out.to(dtype)


def buckets(x: Tensor, projections: Tensor) -> Tensor:
    """Bucket of each token, (..., N): its signs' place in the Gray code, 0 to 2^P - 1.

    x: (..., N, D); projections: (D, P).
    """
    code = ((x @ projections > 0) * 2 ** torch.arange(projections.shape[-1], device=x.device)).sum(-1)
    place = code
    for shift in range(1, projections.shape[-1]):
        place = place ^ (code >> shift)
    return place


def _estimates(
    q: Tensor, k: Tensor, v: Tensor, block: int, samples: int, generator: torch.Generator | None
) -> tuple[Part, Part]:
    """The part inside blocks and the sampled part, for the queries in their own order."""
    (nq, d), nk = q.shape[-2:], k.shape[-2]
    projections = torch.randn(d, PROJECTIONS, generator=generator, device=q.device, dtype=q.dtype)
    q_order = buckets(q, projections).argsort(dim=-1, stable=True)
    k_order = buckets(k, projections).argsort(dim=-1, stable=True)
    q, k, v = take_rows(q, q_order), take_rows(k, k_order), take_rows(v, k_order)

    blocks = math.ceil(nk / block)
    rows = math.ceil(nq / blocks)
    fold = lambda x, size: F.pad(x, (0, 0, 0, blocks * size - x.shape[-2])).unflatten(-2, (blocks, size))
    missing = torch.arange(blocks * block, device=q.device).view(blocks, 1, block) >= nk
    bias = torch.zeros_like(missing, dtype=q.dtype).masked_fill(missing, -torch.inf)
    folded = (x.split(BLOCKS, dim=-3) for x in (fold(q, rows), fold(k, block), fold(v, block), bias))
    inside = Part(*(x.flatten(-3, -2)[..., :nq, :] for x in _join(-3, (_softmax(*part) for part in zip(*folded)))))

    drawn = torch.randperm(nk, generator=generator, device=q.device)[:samples]
    own = torch.arange(nq, device=q.device)[:, None] // rows == drawn // block
    bias = q.new_full(own.shape, math.log(nk / len(drawn))).masked_fill(own, -torch.inf)
    keys, values = k[..., drawn, :], v[..., drawn, :]
    parts = zip(q.split(ROWS, dim=-2), bias.split(ROWS))
    sampled = _join(-2, (_softmax(part, keys, values, of_part) for part, of_part in parts))
    back = q_order.argsort(dim=-1)
    return tuple(Part(*(take_rows(x, back) for x in part)) for part in (inside, sampled))


def _join(dim: int, parts: Iterable[Part]) -> Part:
    return Part(*(torch.cat(x, dim=dim) for x in zip(*parts)))


def _softmax(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Part:
    scores = q @ k.mT * q.shape[-1] ** -0.5
    scores = scores if bias is None else scores + bias
    lse = scores.logsumexp(-1, keepdim=True)
    lse = lse.masked_fill(lse == -torch.inf, torch.finfo(lse.dtype).min)  # a query that sees none of these keys
    return Part((scores - lse).exp() @ v, lse)


def _merge(a: Part, b: Part) -> Part:
    lse = torch.logaddexp(a.lse, b.lse)
    return Part(a.out * (a.lse - lse).exp() + b.out * (b.lse - lse).exp(), lse)
