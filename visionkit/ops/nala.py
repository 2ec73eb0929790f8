"""Norm-aware linear attention (NaLaFormer)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.checks import check_choice
from visionkit.ops import dispatch
from visionkit.ops.precision import without_autocast
from visionkit.ops.rotary import Rotary, rotary_2d

FEATURE_MAPS = ("signs", "cosine")


def nala_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rotary: Rotary | None = None,
    feature_map: str = "signs",
    power: float = 3.0,
    offset: float = 0.5,
    eps: float = 1e-6,
    zero_guard: float = 1e-12,
) -> Tensor:
    """Linear attention in which the norm of a query sharpens its row.

        y_i = Q_i sum_j K_j^T v_j / (Q_i sum_j K_j),   Q, K: non-negative features of twice the head dimension

    Meng, Luo, Huo, Wang, Li and Zhang, NaLaFormer: Norm-Aware Linear Attention for Transformer Models, 2025, arXiv
    2506.21137 (later: Norm×Direction). Computed in float32 at least.

    Complexity: N * dim * dim_v time, dim * dim_v extra memory a head, twice that of plain linear attention. Not for
    causal attention, nor with ``"signs"`` for queries and keys that share no sign: such a row is zero.

    ``feature_map="signs"`` is the released code's: see [sign_features]. ``"cosine"`` is the paper's: see
    [cosine_features] (known from secondary sources). With ``rotary`` the numerator is rotated, the denominator is not.

    Args:
        q, k: (B, heads, N, dim), raw.
        v: (B, heads, N, dim_v).
        rotary: sin and cos, each (N, dim), see [visionkit.ops.rotary.rotary_table_2d], and perhaps
            [visionkit.ops.rotary.rotary_pairs] of them; both halves turn alike.
        feature_map: one of the two above.
        power, offset: lambda and tau of the papers: the exponent of a query is power * (offset + tanh(norm)).
        eps: added to the mean of the products where it divides.
        zero_guard: a query shorter than this counts as this long, so that a zero query gives zeros and no NaN. It
            changes nothing for any longer one. 0 switches it off. A zero query has no second derivative: it is NaN.

    Returns:
        (B, heads, N, dim_v), in the type of ``v``.

    Raises:
        VisionKitError: an unknown ``feature_map``.
    """
    check_feature_map(feature_map)
    options = dict(rotary=rotary, power=power, offset=offset, eps=eps, zero_guard=zero_guard)
    if feature_map == "signs" and (kernel := dispatch.kernel("nala_attention", q, k, v)):
        return kernel(q, k, v, **options)
    return nala_rows(q, k, v, feature_map=feature_map, **options).to(v.dtype)


def nala_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rotary: Rotary | None = None,
    feature_map: str = "signs",
    power: float = 3.0,
    offset: float = 0.5,
    eps: float = 1e-6,
    zero_guard: float = 1e-12,
    share: Callable[..., Sequence[Tensor]] | None = None,
) -> Tensor:
    """The PyTorch form of [nala_attention], in float32 at least.

    q, k (B, heads, N, dim) and v (B, heads, N, dim_v) -> (B, heads, N, dim_v).

    Where these keys are a part of all keys, ``share`` turns means over the part, of K_j^T v_j and K_j, into means over
    all.
    """
    features = sign_features if feature_map == "signs" else cosine_features
    dtype = torch.promote_types(v.dtype, torch.float32)
    with without_autocast(v):
        q_halves, k_halves = features(q.to(dtype), k.to(dtype), power, offset, zero_guard)
        q, k_mean = torch.cat(q_halves, -1), torch.cat([half.mean(-2) for half in k_halves], -1)
        if rotary:
            q_halves = [rotary_2d(half, *rotary) for half in q_halves]
            k_halves = [rotary_2d(half, *rotary) for half in k_halves]
        means = torch.cat(k_halves, -1).transpose(-2, -1) @ v.to(dtype) * (1 / v.shape[-2]), k_mean
        kv, k_mean = share(*means) if share else means
        return torch.cat(q_halves, -1) @ kv / (q @ k_mean.unsqueeze(-1) + eps)


def check_feature_map(feature_map: str) -> None:
    """Raises VisionKitError for an unknown one."""
    check_choice("", FEATURE_MAPS, feature_map=feature_map)


def sign_features(q: Tensor, k: Tensor, power: float, offset: float, zero_guard: float) -> tuple[list, list]:
    """Positive and negative parts of the direction of q, raised to its exponent, and of k cubed.

    (..., N, dim) -> two halves of (..., N, dim) for q, and two for k.
    """
    direction, exponent = _direction_and_exponent(q, power, offset, zero_guard)
    cube, tiny = k**3, torch.finfo(q.dtype).tiny  # not 0, a power of which has a second derivative of NaN
    positive, negative = direction.clamp(min=tiny), -direction.clamp(max=-tiny)
    return [positive**exponent, negative**exponent], [F.relu(cube), F.relu(-cube)]


def cosine_features(q: Tensor, k: Tensor, power: float, offset: float, zero_guard: float) -> tuple[list, list]:
    """|d|^p times the cosine and the sine of the direction d, for q; |k|^power times those of k's direction, for k.

    (..., N, dim) -> two halves of (..., N, dim) for q, and two for k.
    """
    direction, exponent = _direction_and_exponent(q, power, offset, zero_guard)
    k_direction = k / k.norm(dim=-1, keepdim=True).clamp(min=zero_guard)
    q_size = direction.abs().clamp(min=torch.finfo(q.dtype).tiny) ** exponent  # not 0, as above
    k_size = k.abs() ** power
    return (
        [q_size * direction.cos(), q_size * direction.sin()],
        [k_size * k_direction.cos(), k_size * k_direction.sin()],
    )


def _direction_and_exponent(q: Tensor, power: float, offset: float, zero_guard: float) -> tuple[Tensor, Tensor]:
    norm = q.norm(dim=-1, keepdim=True)
    return q / norm.clamp(min=zero_guard), power * (offset + norm.tanh())
