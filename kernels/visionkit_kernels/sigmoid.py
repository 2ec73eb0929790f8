# ruff: noqa: ANN001, ANN201  (kernels take what lies on the device, and return nothing)
"""Sigmoid attention, forward and backward, by tiles: y = sigmoid(scale q k^T + bias) v, rows not normalised.

Ramapuram et al., arXiv 2409.04431, section 4 (FlashSigmoid). Without a sum over rows nothing has to be rescaled or
kept: forward walks over tiles of keys and adds; backward recomputes the weights twice, once along queries for dq, once
along keys for dk and dv. No N x N reaches memory, and results repeat bit for bit.

Rows beyond the end need no mask: they are loaded as zeros, and a zero value, key or gradient adds nothing.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from visionkit_kernels._common import (
    INTERPRET,
    dot,
    dot_types,
    load_tile,
    on_device,
    one_type,
    padded,
    shapes_differ,
    store_tile,
    tokens_first,
)
from visionkit_kernels._direct import differentiable, direct
from visionkit_kernels.tiles import chosen

LARGEST_HEAD = 128
LOG2_E = 1 / math.log(2)


@triton.jit
def _weights(
    q, k, q_rows, k_rows, scale, bias,
    ROWS: tl.constexpr, KEYS: tl.constexpr, CAUSAL: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sigmoid of the scores of a tile; scale and bias in powers of two."""
    scores = dot(q, tl.trans(k), tl.zeros([ROWS, KEYS], ACC), DOT, ACC, PRECISION) * scale + bias
    # not by tanh: weights are about 1 / keys, and 0.5 + 0.5 tanh has lost them before it has rounded
    if DOT == tl.bfloat16 and not INTERPRET:
        weights = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1 + tl.exp2(-scores)], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        weights = 1 / (1 + tl.exp2(-scores))
    if CAUSAL:
        weights = tl.where(k_rows[None, :] <= q_rows[:, None], weights, 0.0)
    return weights


@triton.jit
def sigmoid_forward_kernel(
    q, k, v, out, qb, qh, qn, qd, kb, kh, kn, kd, vb, vh, vn, vd, ob, oh, on, od,
    heads, queries, keys, dim, dim_v, blocks, scale, bias,
    ROWS: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, CAUSAL: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head."""
    program = tl.program_id(0).to(tl.int64)
    head, block = program // blocks, program % blocks
    q += head // heads * qb + head % heads * qh
    k += head // heads * kb + head % heads * kh
    v += head // heads * vb + head % heads * vh
    out += head // heads * ob + head % heads * oh
    columns, columns_v = tl.arange(0, D), tl.arange(0, DV)
    rows = block * ROWS + tl.arange(0, ROWS).to(tl.int64)
    query = load_tile(q, rows, columns, qn, qd, queries, dim)
    y = tl.zeros([ROWS, DV], ACC)
    end = tl.minimum(keys, (block + 1) * ROWS) if CAUSAL else keys
    for start in range(0, end, KEYS):
        k_rows = start + tl.arange(0, KEYS).to(tl.int64)
        key = load_tile(k, k_rows, columns, kn, kd, keys, dim)
        value = load_tile(v, k_rows, columns_v, vn, vd, keys, dim_v)
        weights = _weights(query, key, rows, k_rows, scale, bias, ROWS, KEYS, CAUSAL, DOT, ACC, PRECISION)
        y = dot(weights, value, y, DOT, ACC, PRECISION)
    store_tile(out, y, rows, columns_v, on, od, queries, dim_v)


@triton.jit
def sigmoid_backward_queries(
    q, k, v, grad, dq, qb, qh, qn, qd, kb, kh, kn, kd, vb, vh, vn, vd, gb, gh, gn, gd, rb, rh, rn, rd,
    heads, queries, keys, dim, dim_v, blocks, scale, bias, slope,
    ROWS: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, CAUSAL: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of one tile of queries of one head."""
    program = tl.program_id(0).to(tl.int64)
    head, block = program // blocks, program % blocks
    q += head // heads * qb + head % heads * qh
    k += head // heads * kb + head % heads * kh
    v += head // heads * vb + head % heads * vh
    grad += head // heads * gb + head % heads * gh
    dq += head // heads * rb + head % heads * rh
    columns, columns_v = tl.arange(0, D), tl.arange(0, DV)
    rows = block * ROWS + tl.arange(0, ROWS).to(tl.int64)
    query = load_tile(q, rows, columns, qn, qd, queries, dim)
    g = load_tile(grad, rows, columns_v, gn, gd, queries, dim_v)
    dx = tl.zeros([ROWS, D], ACC)
    end = tl.minimum(keys, (block + 1) * ROWS) if CAUSAL else keys
    for start in range(0, end, KEYS):
        k_rows = start + tl.arange(0, KEYS).to(tl.int64)
        key = load_tile(k, k_rows, columns, kn, kd, keys, dim)
        value = load_tile(v, k_rows, columns_v, vn, vd, keys, dim_v)
        weights = _weights(query, key, rows, k_rows, scale, bias, ROWS, KEYS, CAUSAL, DOT, ACC, PRECISION)
        dweights = dot(g, tl.trans(value), tl.zeros([ROWS, KEYS], ACC), DOT, ACC, PRECISION)
        dx = dot(dweights * weights * (1 - weights), key, dx, DOT, ACC, PRECISION)
    store_tile(dq, dx * slope, rows, columns, rn, rd, queries, dim)


@triton.jit
def sigmoid_backward_keys(
    q, k, v, grad, dk, dv, qb, qh, qn, qd, kb, kh, kn, kd, vb, vh, vn, vd, gb, gh, gn, gd, rb, rh, rn, rd,
    wb, wh, wn, wd, heads, queries, keys, dim, dim_v, blocks, scale, bias, slope,
    ROWS: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, CAUSAL: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of keys of one head."""
    program = tl.program_id(0).to(tl.int64)
    head, block = program // blocks, program % blocks
    q += head // heads * qb + head % heads * qh
    k += head // heads * kb + head % heads * kh
    v += head // heads * vb + head % heads * vh
    grad += head // heads * gb + head % heads * gh
    dk += head // heads * rb + head % heads * rh
    dv += head // heads * wb + head % heads * wh
    columns, columns_v = tl.arange(0, D), tl.arange(0, DV)
    k_rows = block * KEYS + tl.arange(0, KEYS).to(tl.int64)
    key = load_tile(k, k_rows, columns, kn, kd, keys, dim)
    value = load_tile(v, k_rows, columns_v, vn, vd, keys, dim_v)
    dkey = tl.zeros([KEYS, D], ACC)
    dvalue = tl.zeros([KEYS, DV], ACC)
    first = block * KEYS // ROWS * ROWS if CAUSAL else block * 0
    for start in range(first, queries, ROWS):
        rows = start + tl.arange(0, ROWS).to(tl.int64)
        query = load_tile(q, rows, columns, qn, qd, queries, dim)
        g = load_tile(grad, rows, columns_v, gn, gd, queries, dim_v)
        weights = _weights(query, key, rows, k_rows, scale, bias, ROWS, KEYS, CAUSAL, DOT, ACC, PRECISION)
        dvalue = dot(tl.trans(weights), g, dvalue, DOT, ACC, PRECISION)
        dweights = dot(g, tl.trans(value), tl.zeros([ROWS, KEYS], ACC), DOT, ACC, PRECISION)
        dkey = dot(tl.trans(dweights * weights * (1 - weights)), query, dkey, DOT, ACC, PRECISION)
    store_tile(dk, dkey * slope, k_rows, columns, rn, rd, keys, dim)
    store_tile(dv, dvalue, k_rows, columns_v, wn, wd, keys, dim_v)


def config(dim: int, dim_v: int, dtype: torch.dtype, device: torch.device, backward: bool = False) -> dict:
    """Rows and keys of a tile, warps and stages, by the width of a head."""
    large, half = max(padded(dim), padded(dim_v)) > 64, dtype == torch.bfloat16
    rows = 128 if half and not backward else 64 if half or not (large or backward) else 32
    keys = 64 if half else 32
    warps = 8 if large or half and not backward else 4
    stages = 3 if half and not backward else 2
    sizes = dict(ROWS=rows, KEYS=keys, D=padded(dim), DV=padded(dim_v), num_warps=warps, num_stages=stages)
    return chosen(f"sigmoid {'backward' if backward else 'forward'}", sizes, dtype, device)


def _numbers(keys: int, dim: int) -> tuple[float, float]:
    """Scale and bias of the scores, in powers of two."""
    return dim**-0.5 * LOG2_E, -math.log2(keys)


def launch_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """(B, heads, Nq, dim_v)."""
    (batch, heads, queries, dim), (keys, dim_v) = q.shape, v.shape[-2:]
    sizes = config(dim, dim_v, q.dtype, q.device)
    out = tokens_first(v, batch, heads, queries, dim_v)
    blocks = triton.cdiv(queries, sizes["ROWS"])
    with on_device(q):
        sigmoid_forward_kernel[(batch * heads * blocks,)](
            q, k, v, out, *q.stride(), *k.stride(), *v.stride(), *out.stride(),
            heads, queries, keys, dim, dim_v, blocks, *_numbers(keys, dim),
            CAUSAL=causal, **sizes, **dot_types(q.dtype),
        )  # fmt: skip
    return out


def launch_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv."""
    (batch, heads, queries, dim), (keys, dim_v) = q.shape, v.shape[-2:]
    sizes = config(dim, dim_v, q.dtype, q.device, backward=True)
    dq, dk, dv = (tokens_first(x, batch, heads, x.shape[2], x.shape[3]) for x in (q, k, v))
    strides = (*q.stride(), *k.stride(), *v.stride(), *grad.stride())
    shape, options = (heads, queries, keys, dim, dim_v), dict(CAUSAL=causal, **sizes, **dot_types(q.dtype))
    numbers = (*_numbers(keys, dim), dim**-0.5)
    with on_device(q):
        blocks = triton.cdiv(queries, sizes["ROWS"])
        sigmoid_backward_queries[(batch * heads * blocks,)](
            q, k, v, grad, dq, *strides, *dq.stride(), *shape, blocks, *numbers, **options
        )
        blocks = triton.cdiv(keys, sizes["KEYS"])
        sigmoid_backward_keys[(batch * heads * blocks,)](
            q, k, v, grad, dk, dv, *strides, *dk.stride(), *dv.stride(), *shape, blocks, *numbers, **options
        )
    return dq, dk, dv


sigmoid_forward = torch.library.custom_op("visionkit_kernels::sigmoid_attention", launch_forward, mutates_args=())
sigmoid_backward = torch.library.custom_op(
    "visionkit_kernels::sigmoid_attention_backward", launch_backward, mutates_args=()
)


@sigmoid_forward.register_fake
def _(q, k, v, causal):  # noqa: ANN202
    return tokens_first(v, *q.shape[:3], v.shape[-1])


@sigmoid_backward.register_fake
def _(grad, q, k, v, causal):  # noqa: ANN202
    return tuple(tokens_first(x, *x.shape) for x in (q, k, v))


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.causal = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad) -> tuple:
    return *direct(sigmoid_backward, launch_backward)(grad, *ctx.saved_tensors, ctx.causal), None


sigmoid_forward.register_autograd(_backward, setup_context=_setup)
_run = differentiable(sigmoid_forward, launch_forward, _setup, _backward)


def refuses(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the kernels do not take these tensors, or None."""
    if reason := shapes_differ(q, k, v):
        return reason
    if max(q.shape[-1], v.shape[-1]) > LARGEST_HEAD:
        return f"heads must have at most {LARGEST_HEAD} channels"
    return "a tensor is empty" if 0 in (*q.shape, *k.shape, *v.shape) else None


def sigmoid_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """y = sigmoid(q k^T / sqrt(dim) - log Nk) v.

    Args:
        q: (B, heads, Nq, dim). Any strides.
        k: (B, heads, Nk, dim).
        v: (B, heads, Nk, dim_v).
        causal: key j is seen by query i only if j <= i.

    Returns:
        (B, heads, Nq, dim_v), in the type of ``v``.
    """
    return _run(*one_type(q, k, v), causal)
