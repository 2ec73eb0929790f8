"""Which keys a query sees, and attention by blocks of queries, so that no N x N matrix is held."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.checks import check_counts, given
from visionkit.errors import VisionKitError
from visionkit.ops.precision import wide

ROWS = 512  # queries at a time


def empty_output(q: Tensor, k: Tensor, v: Tensor, *others: object) -> Tensor | None:
    """The output where no query asks, in an empty batch or for want of tokens; None where there is work to do.

    Args:
        q: (B, H, N, D).
        k: (B, H, M, D).
        v: (B, H, M, Dv).
        others: options, the tensors of which get a gradient of zero, as q, k and v do.

    Returns:
        (B, H, N, Dv), without an element, or None.

    Raises:
        VisionKitError: queries, but not a key.
    """
    if 0 not in q.shape[:-1]:
        if v.shape[-2] == 0:
            raise VisionKitError(f"attention: {q.shape[-2]} queries have no keys to attend to; give at least one")
        return None
    joined = sum(x.sum() for x in (q, k, v, *others) if isinstance(x, Tensor))
    return v.new_zeros(*q.shape[:-1], v.shape[-1]) + joined.to(v.dtype)


def by_rows(
    weigh: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    window: int | None,
) -> Tensor:
    """Attention whose weights are made for some queries at a time.

    Args:
        weigh: queries (..., R, D), the keys that any of them sees (..., M, D), and (R, M) booleans of who sees whom or
            None for all -> weights (..., R, M), zero where unseen.
        q, k, v: (B, H, N, D).
        causal: key j is seen by query i only if j <= i.
        window: ... only if |i - j| <= window. Queries that see no key give zeros.

    Raises:
        VisionKitError: not as many values as keys; a negative ``window``.
    """
    check_counts("", 0, **given(window=window))
    n, dtype = k.shape[-2], v.dtype
    if v.shape[-2] != n:
        raise VisionKitError(f"attention: expected a value for each of the {n} keys, got {v.shape[-2]}")
    q, k, v = wide(q, k, v)
    seeing = q.shape[-2] if window is None else min(q.shape[-2], n + window)  # those from there on see no key
    parts = []
    for start in range(0, seeing, ROWS):
        stop = min(start + ROWS, seeing)
        low = 0 if window is None else max(0, start - window)
        high = n if window is None else min(n, stop + window)
        high = min(high, stop) if causal else high
        mask = None
        if causal or window is not None:
            gap = torch.arange(start, stop, device=q.device)[:, None] - torch.arange(low, high, device=q.device)
            mask = gap >= (0 if causal else -window)
            mask = mask if window is None else mask & (gap <= window)
        parts.append(weigh(q[..., start:stop, :], k[..., low:high, :], mask) @ v[..., low:high, :])
    y = torch.cat(parts, dim=-2).to(dtype)
    return y if window is None or seeing == q.shape[-2] else F.pad(y, (0, 0, 0, q.shape[-2] - seeing))


def in_blocks(function: Callable, q: Tensor, k: Tensor, v: Tensor, block: int, /, **options: object) -> Tensor:
    """A mechanism inside non-overlapping blocks of tokens; the last may be shorter. ``block`` may be an option too.

    q, k and v (B, H, N, D) -> (B, H, N, Dv).
    """
    n = q.shape[-2]
    whole = n - n % block

    def fold(x: Tensor) -> Tensor:
        return x[..., :whole, :].unflatten(-2, (-1, block)).transpose(1, 2).flatten(0, 1)  # (B * blocks, H, block, D)

    parts = []
    if whole:
        y = function(fold(q), fold(k), fold(v), **options)
        parts.append(y.unflatten(0, (q.shape[0], -1)).transpose(1, 2).flatten(2, 3))
    if whole < n:
        parts.append(function(*(x[..., whole:, :] for x in (q, k, v)), **options))
    return torch.cat(parts, dim=-2)
