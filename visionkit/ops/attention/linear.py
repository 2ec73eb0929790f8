"""Linear attention."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.checks import check_choice
from visionkit.ops import dispatch
from visionkit.ops.attention._chunks import causal_linear
from visionkit.ops.attention._masks import by_rows
from visionkit.ops.mala import elu_plus_one
from visionkit.ops.precision import wide, without_autocast

EPS = 1e-6
FEATURE_MAPS = dict(
    elu=elu_plus_one,
    relu=F.relu,
    exp=torch.exp,
    relu2=lambda x: F.relu(x).square(),
    none=lambda x: x,
)
OUTPUTS = ("sum", "rms", "none")


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    feature_map: str = "elu",
    output: str = "sum",
) -> Tensor:
    """y_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / (φ(q_i) · Σ_j φ(k_j)), φ = elu + 1, or another φ and another norm of the rows.

    Katharopoulos et al., Transformers are RNNs, 2020, arXiv 2006.16236; with ``output="rms"`` that of TransNormer, see
    :func:`visionkit.ops.attention.norm.norm_attention`.

    Complexity: n d² time, d² state; sums are in float32. Not for tasks that need sharp weights: scaling q changes
    little, and the rank of the weights is at most d.

    Args:
        q, k: (B, H, N, D), raw: φ is applied here.
        v: (B, H, N, Dv).
        causal: key j is seen by query i only if j <= i; by chunks.
        window: ... only if |i - j| <= window; by explicit weights, n w d.
        feature_map: φ, ``"elu"`` (elu + 1), ``"relu"``, ``"exp"``, ``"relu2"`` (relu squared) or ``"none"`` (x itself,
            whose weights may be negative and sum to 0: not for ``output="sum"``).
        output: ``"sum"`` divides by the sum of the weights, ``"rms"`` gives every row the length √Dv and ``"none"``
            leaves the mean of φ(q_i) · φ(k_j) v_j over the keys that i sees.

    Returns:
        (B, H, N, Dv).

    Raises:
        VisionKitError: an unknown ``feature_map`` or ``output``; a negative ``window``.
    """
    check_form(feature_map, output)
    if window is None and not causal and (kernel := dispatch.kernel("linear_attention", q, k, v)):
        return kernel(q, k, v, feature_map=feature_map, output=output, eps=EPS)
    dtype = v.dtype
    with without_autocast(v):  # as causal_linear
        q, k, v = wide(q, k, v)
        q, k = FEATURE_MAPS[feature_map](q), FEATURE_MAPS[feature_map](k)
        if window is not None:
            y = by_rows(partial(_weights, output=output), q, k, v, causal=causal, window=window)
            return (rms_norm(y) if output == "rms" else y).to(dtype)
        v, n = with_ones(v, output), k.shape[-2]
        if causal:
            seen = torch.arange(1, n + 1, dtype=q.dtype, device=q.device)[:, None]
            return rows(causal_linear(q, k, v) / seen, seen, output).to(dtype)
        return rows(q @ (k.mT @ (v / n)), n, output).to(dtype)


def check_form(feature_map: str, output: str) -> None:
    """Raises VisionKitError for an unknown one."""
    check_choice("", FEATURE_MAPS, feature_map=feature_map)
    check_choice("", OUTPUTS, output=output)


def with_ones(v: Tensor, output: str) -> Tensor:
    """v (..., N, Dv), for a division by the sum of the weights with a last channel that sums them."""
    return F.pad(v, (0, 1), value=1.0) if output == "sum" else v


def rows(means: Tensor, seen: Tensor | int, output: str) -> Tensor:
    """The output from means of [with_ones] over ``seen`` keys: (..., N, Dv) or (..., N, Dv + 1) -> (..., N, Dv)."""
    if output == "sum":
        return means[..., :-1] / (means[..., -1:] + EPS / seen)
    return rms_norm(means) if output == "rms" else means


def rms_norm(x: Tensor) -> Tensor:
    """x √d / ‖x‖ along the last axis, (..., d) -> (..., d); 0 stays 0."""
    return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5


def _weights(q: Tensor, k: Tensor, mask: Tensor, output: str) -> Tensor:
    weights = torch.where(mask, q @ k.mT, 0)
    total = weights.sum(-1, keepdim=True) + EPS if output == "sum" else mask.sum(-1, keepdim=True).clamp(min=1)
    return weights / total
