"""Magnitude-aware linear attention (MALA)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.errors import VisionKitError
from visionkit.ops import dispatch
from visionkit.ops.precision import without_autocast
from visionkit.ops.rotary import Rotary, rotary_2d


def mala_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rotary: Rotary | None = None,
    scale: float | None = None,
    eps: float = 1e-6,
    normalise_rotated: bool = False,
    local: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """Linear attention whose weights keep the magnitude of the query.

    With phi = elu + 1, s = scale, N tokens and z_i = s / N * sum_j phi(q_i) phi(k_j), the weight of token j in row i is

        (1 + 1 / z_i) * s / N * phi(q_i) phi(k_j) - z_i / N

    Weights may be negative and every row sums to one.

    Fan, Huang, Ai and He, Rectifying Magnitude Neglect in Linear Attention, ICCV 2025, arXiv 2507.00698. The formula is
    second-hand, the factor s / N in it and the order of rotation are the released code's.

    Complexity: N * dim * dim_v time, dim * dim_v extra memory a head: the sum over j is never formed pair by pair.
    Not for causal attention, nor for speed at up to 1000 tokens or so, where softmax is as fast.

    With ``rotary`` the products phi(q_i) phi(k_j) are taken after rotation but z, as published, before, so that rows
    sum to one only nearly. ``normalise_rotated`` takes z after it too: rows sum to one, but z may come near zero or
    become negative, which the published order avoids.

    Computed in float32 at least: of strongly negative queries 1 / z, and its gradient more so, leaves half precision.

    With ``local`` and ``gate`` the result is (attention + local) * gate, the paper's module between its projections:
    there ``local`` is a depthwise convolution of the values and ``gate`` a linear layer of the input.

    Args:
        q, k: (B, heads, N, dim), raw: phi is applied here.
        v: (B, heads, N, dim_v).
        rotary: sin and cos, each (N, dim), see [visionkit.ops.rotary.rotary_table_2d], and perhaps
            [visionkit.ops.rotary.rotary_pairs] of them.
        scale: s; default dim ** -0.5.
        eps: added to z where it divides.
        normalise_rotated: take z after the rotation, as above.
        local, gate: (B, heads, N, dim_v) with any strides, so that views of maps (B, N, heads * dim_v) do. Both or
            neither.

    Returns:
        (B, heads, N, dim_v), in the type of ``v``.

    Raises:
        VisionKitError: only one of ``local`` and ``gate``, or another shape of them.
    """
    check_gating(local, gate, (*q.shape[:-1], v.shape[-1]))
    options = dict(rotary=rotary, scale=scale, eps=eps, normalise_rotated=normalise_rotated)
    if kernel := dispatch.kernel("mala_attention", q, k, v):
        return kernel(q, k, v, local=local, gate=gate, **options)
    out = mala_rows(q, k, v, **options)
    out = out if gate is None else (out + local) * gate
    return out.to(v.dtype)


def mala_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rotary: Rotary | None = None,
    scale: float | None = None,
    eps: float = 1e-6,
    normalise_rotated: bool = False,
    share: Callable[..., Sequence[Tensor]] | None = None,
) -> Tensor:
    """The PyTorch form of [mala_attention] without its gate, in float32 at least.

    q, k (B, heads, N, dim) and v (B, heads, N, dim_v) -> (B, heads, N, dim_v).

    Where these keys are a part of all keys, ``share`` turns means over the part, of phi(k_j)^T v_j, phi(k_j) and v_j,
    into means over all.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dtype = torch.promote_types(v.dtype, torch.float32)
    with without_autocast(v):
        q, k, v = elu_plus_one(q.to(dtype)), elu_plus_one(k.to(dtype)), v.to(dtype)
        rotated_q, rotated_k = (rotary_2d(q, *rotary), rotary_2d(k, *rotary)) if rotary else (q, k)
        if normalise_rotated:
            q, k = rotated_q, rotated_k
        kv = rotated_k.transpose(-2, -1) @ v * (1 / k.shape[-2])
        means = kv, k.mean(dim=-2), v.mean(dim=-2, keepdim=True)
        kv, k_mean, v_mean = share(*means) if share else means
        z = scale * (q @ k_mean.unsqueeze(-1))
        safe_z = torch.where(z < 0, z - eps, z + eps)
        return torch.addcmul(rotated_q @ (kv * scale) * (1 + 1 / safe_z), z, v_mean, value=-1)


def check_gating(local: Tensor | None, gate: Tensor | None, shape: tuple[int, ...]) -> None:
    """Raises VisionKitError unless both or neither are given, of that shape."""
    if local is None and gate is None:
        return
    if local is None or gate is None:
        raise VisionKitError(f"{'local' if local is None else 'gate'}: is missing; give local and gate, or neither")
    for name, x in (("local", local), ("gate", gate)):
        if x.shape != shape:
            raise VisionKitError(f"{name}: expected the output's shape {tuple(shape)}, got {tuple(x.shape)}")


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1, positive everywhere: x + 1 above zero, exp(x) from there down, zero's slope of 1 with it.

    The negative part is what the positive leaves, so that one map more than the result's is needed. Both steps in place
    overwrite nothing that a gradient needs: a threshold keeps its input, an exponential its result.
    """
    positive = F.threshold(x, 0, 0)
    return positive.add_((x - positive).exp_())
