"""Aaren: attention as a recurrent network."""

from typing import NamedTuple

import torch
from torch import Tensor

from visionkit.ops.precision import wide


class State(NamedTuple):
    """Of some tokens: largest score m (..., N, 1), u = Σ e^(s - m) (..., N, 1), w = Σ e^(s - m) v (..., N, Dv)."""

    m: Tensor
    u: Tensor
    w: Tensor


def parameters(heads: int, head_dim: int) -> dict[str, Tensor]:
    """The learned query token, (H, D)."""
    return dict(query=torch.randn(heads, head_dim))


def aaren_attention(q: Tensor, k: Tensor, v: Tensor, *, query: Tensor | None = None) -> Tensor:
    """y_i = softmax over j <= i of (query · k_j / √d) v_j: one learned query per head, all prefixes at once.

    By a parallel prefix scan over (m, u, w) of the tokens, where two neighbouring runs a, b of tokens combine to
    m = max(m_a, m_b), u = u_a e^(m_a - m) + u_b e^(m_b - m), and w likewise; y = w / u. :func:`aaren_step` gives the
    same outputs token by token in constant memory. The last output is attention pooling over all tokens.

    Feng et al., Attention as an RNN, 2024, arXiv 2405.13956 (second-hand). Queries do not depend on the input, so q is
    used only where ``query`` is None. Always causal.

    Complexity: n d time and memory, log n steps; d memory when streaming. Not for tokens that must ask different
    questions of their past; in images, tokens see only those before them.

    Args:
        q: (B, H, N, D).
        k: (B, H, N, D).
        v: (B, H, N, Dv).
        query: (H, D); None for the first token of q.

    Returns:
        (B, H, N, Dv).
    """
    state = _scan(_leaves(q, k, v, query))
    return (state.w / state.u).to(v.dtype)


def aaren_step(
    state: State | None, q: Tensor, k: Tensor, v: Tensor, *, query: Tensor | None = None
) -> tuple[State, Tensor]:
    """One token, (B, H, 1, D), and the state of those before it, or None -> state and output (B, H, 1, Dv).

    Without ``query``, q must be the first token's at every step.
    """
    new = _leaves(q, k, v, query)
    state = new if state is None else _combine(state, new)
    return state, (state.w / state.u).to(v.dtype)


def _leaves(q: Tensor, k: Tensor, v: Tensor, query: Tensor | None) -> State:
    q, k, v = wide(q, k, v)
    query = q[..., :1, :] if query is None else query.to(k)[:, None]
    scores = (k * query).sum(-1, keepdim=True) * k.shape[-1] ** -0.5
    return State(scores, torch.ones_like(scores), v)


def _combine(a: State, b: State) -> State:
    m = torch.maximum(a.m, b.m)
    of_a, of_b = (a.m - m).exp(), (b.m - m).exp()
    return State(m, a.u * of_a + b.u * of_b, a.w * of_a + b.w * of_b)


def _scan(leaves: State) -> State:
    """All prefixes: scan pairs of neighbours, then add a token to those that end in between."""
    n = leaves.m.shape[-2]
    if n == 1:
        return leaves
    first, second = (State(*(x[..., i : n - n % 2 : 2, :] for x in leaves)) for i in (0, 1))
    pairs = _scan(_combine(first, second))
    between = _combine(State(*(x[..., : (n - 1) // 2, :] for x in pairs)), State(*(x[..., 2::2, :] for x in leaves)))
    return State(*(_interleave(x[..., :1, :], even, odd) for x, even, odd in zip(leaves, between, pairs)))


def _interleave(start: Tensor, even: Tensor, odd: Tensor) -> Tensor:
    even = torch.cat([start, even], dim=-2)
    both = torch.stack([even[..., : odd.shape[-2], :], odd], dim=-2).flatten(-3, -2)
    return torch.cat([both, even[..., odd.shape[-2] :, :]], dim=-2)
