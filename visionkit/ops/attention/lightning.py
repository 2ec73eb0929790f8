"""Lightning Attention: linear attention whose weights fade with distance."""

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.errors import VisionKitError
from visionkit.ops.attention._chunks import bidirectional_linear, causal_linear
from visionkit.ops.attention.linear import rms_norm
from visionkit.ops.precision import wide


def head_decay(heads: int, layer: int = 0, layers: int = 2) -> Tensor:
    """Log of the decay, (H,): -slope_h (1 - layer / (layers - 1) + 1e-5) with slope_h = 2^(-8 h / H), h = 1..H.

    Raises:
        VisionKitError: a ``layer`` that is not one of the ``layers``: its weights would grow with distance.
    """
    if not 0 <= layer < layers:
        raise VisionKitError(f"layer={layer!r}: expected a whole number from 0 to {layers - 1}, of layers={layers}")
    slope = 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)
    return -slope * (1 - layer / max(1, layers - 1) + 1e-5)


def lightning_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, log_decay: Tensor | None = None
) -> Tensor:
    """y_i = norm(Σ_j λ^|i - j| (q_i · k_j) v_j) of q, k, v after SiLU; norm(x) = x √d / ‖x‖.

    Causal: by chunks, pairs inside a chunk and a state of d x d between chunks. Bidirectional, for images: a pass each
    way (inferred; the papers have no such form). The sigmoid gate of the papers' layer needs the layer's input and is
    left to the layer.

    Qin et al., Lightning Attention-2: A Free Lunch for Handling Unlimited Sequence Lengths in Large Language Models,
    2024, arXiv 2401.04658; decay and norm: Qin et al., TransNormerLLM, 2023, arXiv 2307.14995.

    Complexity: n d² time, d² state per step (see :func:`lightning_step`); sums are in float32. Not for looking up
    single far tokens: weights fade, and may be negative.

    Args:
        q, k: (B, H, N, D).
        v: (B, H, N, Dv).
        causal: key j is seen by query i only if j <= i.
        log_decay: log λ, (H,); None for :func:`head_decay` of a first layer.

    Returns:
        (B, H, N, Dv).
    """
    dtype = v.dtype
    q, k, v = (F.silu(x) for x in wide(q, k, v))
    log_decay = head_decay(q.shape[1]) if log_decay is None else log_decay
    gates = log_decay.to(q)[:, None].expand(-1, q.shape[-2])
    return rms_norm((causal_linear if causal else bidirectional_linear)(q, k, v, gates)).to(dtype)


def lightning_step(
    state: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *, log_decay: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One token of the causal form, whatever came before it.

    Args:
        state: (B, H, D, Dv) of the tokens before, or None for the first.
        q, k, v: (B, H, 1, D), this token.
        log_decay: log λ, (H,); None for :func:`head_decay` of a first layer.

    Returns:
        The state with this token, and its output (B, H, 1, Dv).
    """
    dtype = v.dtype
    q, k, v = (F.silu(x) for x in wide(q, k, v))
    log_decay = head_decay(q.shape[1]) if log_decay is None else log_decay
    new = k.mT @ v
    state = new if state is None else state * log_decay.to(q).exp()[:, None, None] + new
    return state, rms_norm(q @ state).to(dtype)
