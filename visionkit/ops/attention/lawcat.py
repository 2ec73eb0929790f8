"""LAWCAT: convolution across tokens, then gated linear attention."""

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.ops.attention._chunks import bidirectional_linear, causal_linear
from visionkit.ops.precision import wide

TAPS = 4
TEMPERATURE = 16  # gates start near one: sigmoid(x)^(1 / 16)


def parameters(heads: int, head_dim: int) -> dict[str, Tensor]:
    """Convolutions that pass their input through, an identity feature map and gates near one."""
    through = torch.zeros(heads, head_dim, TAPS)
    through[..., -1] = 1
    return dict(
        conv_q=through,
        conv_k=through.clone(),
        feature=torch.eye(head_dim).repeat(heads, 1, 1),
        gate=torch.zeros(heads, head_dim),
        gate_bias=torch.full((heads,), 4.0),
    )


def lawcat_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    conv_q: Tensor | None = None,
    conv_k: Tensor | None = None,
    feature: Tensor | None = None,
    gate: Tensor | None = None,
    gate_bias: Tensor | None = None,
) -> Tensor:
    """Depthwise convolution of q and k along the tokens, features φ, and linear attention with data-dependent gates.

    y_i = Σ_j w_ij v_j / Σ_j w_ij, w_ij = (Π gates between j and i) φ(q̃_i) · φ(k̃_j), with
    φ(x) = [softmax(x W), softmax(-x W)] and gate_t = sigmoid(k_t · g + b)^(1/16), one per head and token.

    Liu et al., LAWCAT: Efficient Distillation from Quadratic to Linear Attention with Convolution across Tokens, 2025,
    arXiv 2509.18467 (second-hand: convolution of 4 taps, normalised gated linear attention, trained by distillation).
    φ, and gates per head in place of per channel, are inferred. For images the convolution is the mean of a pass each
    way along the rows of tokens, and gates act between i and j both ways (inferred).

    Complexity: n d² time, d² state; sums are in float32. Not for use untrained: its features are learned from a
    softmax network (tools/studies/distill_lawcat.py).

    Args:
        q, k: (B, H, N, D).
        v: (B, H, N, Dv).
        causal: key j is seen by query i only if j <= i, also by the convolution.
        conv_q, conv_k: (H, D, T) taps, the last one of the token itself; None for no convolution.
        feature: W, (H, D, F); None for the identity.
        gate, gate_bias: g (H, D) and b (H,); None for gates of one.

    Returns:
        (B, H, N, Dv).
    """
    dtype = v.dtype
    q, k, v = wide(q, k, v)
    gates = q.new_zeros(1, 1, q.shape[-2])
    if gate is not None:
        scores = torch.einsum("bhnd,hd->bhn", k, gate.to(k)) + gate_bias.to(k)[:, None]
        gates = F.logsigmoid(scores) / TEMPERATURE
    q, k = _features(_convolve(q, conv_q, causal), feature), _features(_convolve(k, conv_k, causal), feature)
    v = F.pad(v, (0, 1), value=1.0)  # the last channel sums the weights
    y = (causal_linear if causal else bidirectional_linear)(q, k, v, gates)
    return (y[..., :-1] / y[..., -1:]).to(dtype)


def _convolve(x: Tensor, taps: Tensor | None, causal: bool) -> Tensor:
    if taps is None:
        return x
    if not causal:
        return (_convolve(x, taps, True) + _convolve(x.flip(-2), taps, True).flip(-2)) / 2
    channels = x.transpose(2, 3).flatten(1, 2)  # (B, H * D, N)
    weight = taps.to(x).flatten(0, 1)[:, None]
    y = F.conv1d(F.pad(channels, (taps.shape[-1] - 1, 0)), weight, groups=channels.shape[1])
    return y.unflatten(1, x.shape[1:4:2]).transpose(2, 3)


def _features(x: Tensor, weight: Tensor | None) -> Tensor:
    x = x if weight is None else x @ weight.to(x)
    return torch.cat([x.softmax(-1), (-x).softmax(-1)], dim=-1)
