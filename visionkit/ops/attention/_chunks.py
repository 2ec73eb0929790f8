"""Causal linear attention by chunks of tokens, with a state of D x Dv per head between chunks."""

import torch
from torch import Tensor

from visionkit.ops.precision import wide, without_autocast

CHUNK = 64


def causal_linear(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor | None = None) -> Tensor:
    """y_i = sum over j <= i of (prod over t = j + 1 .. i of gate_t) (q_i . k_j) v_j, in O(N D Dv).

    Args:
        q, k: (B, H, N, D); half precision becomes float32.
        v: (B, H, N, Dv).
        log_gate: log of the gates, at most 0, broadcasts with (B, H, N); None for no decay.

    Returns:
        (B, H, N, Dv).
    """
    with without_autocast(q):  # sums over all tokens before leave the range of half precision
        q, k, v = wide(q, k, v)
        n = q.shape[-2]
        log_gate = q.new_zeros(1, 1, n) if log_gate is None else log_gate.expand(*log_gate.shape[:-1], n)
        state = q.new_zeros(*q.shape[:-2], q.shape[-1], v.shape[-1])
        parts = []
        for start in range(0, n, CHUNK):
            part = slice(start, start + CHUNK)
            qc, kc, vc, total = q[..., part, :], k[..., part, :], v[..., part, :], log_gate[..., part].cumsum(-1)
            decay = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
            inside = (qc @ kc.mT * decay) @ vc
            parts.append(inside + (qc * total[..., None].exp()) @ state)
            left = (total[..., -1:] - total).exp()  # what is left of each token at the chunk's end
            state = state * total[..., -1, None, None].exp() + (kc * left[..., None]).mT @ vc
        return torch.cat(parts, dim=-2)


def bidirectional_linear(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor) -> Tensor:
    """[causal_linear] over all j, with the gates between i and j: a pass each way, own token counted once.

    Shapes as there.
    """
    q_back, k_back, v_back = q.flip(-2), k.flip(-2), v.flip(-2)
    ahead = causal_linear(q, k, v, log_gate)
    behind = causal_linear(q_back, k_back, v_back, log_gate.roll(-1, -1).flip(-1)).flip(-2)
    return ahead + behind - (q * k).sum(-1, keepdim=True) * v
