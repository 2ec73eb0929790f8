# ruff: noqa: ANN001, ANN201  (kernels take what lies on the device, and return nothing)
"""NaLa attention with features split by sign, forward and backward.

A query's feature is |d|^e, with its direction d = q / |q| and the exponent e = power (offset + tanh |q|); a key's is
|k|^3. Where the channel is above zero it stands in the first half of the features, where it is below in the second, and
its other half is zero. With S_h the mean of (turned K_h)^T v over keys, m_h that of K_h, for the halves h = 0, 1:

    y = sum_h turned Q_h S_h / (sum_h Q_h . m_h + eps)

The passes are those of ``visionkit_kernels.linear``. Halves are stacked in memory: the state is (2, dim, dim_v) a head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from visionkit_kernels._common import (
    HALF,
    NAN,
    column_sums,
    cut,
    does_not_compile,
    dot,
    dot_types,
    exchanged,
    exponential,
    little_shared_memory,
    load_tile,
    on_device,
    one_type,
    padded,
    pairs,
    shapes_differ,
    store_tile,
    sum_type,
    tokens_first,
    turn,
    turn_back,
)
from visionkit_kernels._direct import differentiable, direct

LARGEST_HEAD = 64


@triton.jit
def _angles(table, rows, columns, count, dim, like, ROTARY: tl.constexpr, ACC: tl.constexpr):
    """Rotary table of a tile."""
    if ROTARY:
        y = load_tile(table, rows, columns, dim, 1, count, dim).to(ACC)
    else:
        y = like
    return y


@triton.jit
def _turned(x, angles, ROWS: tl.constexpr, D: tl.constexpr, ROTARY: tl.constexpr):
    if ROTARY:
        y = turn(x, angles, ROWS, D)
    else:
        y = x
    return y


@triton.jit
def _turned_back(g, angles, ROWS: tl.constexpr, D: tl.constexpr, ROTARY: tl.constexpr):
    if ROTARY:
        y = turn_back(g, angles, ROWS, D)
    else:
        y = g
    return y


@triton.jit
def _query(q, power, offset, guard):
    """Norms, one over the lengths that divide, sizes of directions, exponents and features (unsplit) of raw queries.

    Comparisons, here and where features are split, are such that what is not a number stays so.
    """
    norm = tl.sqrt(tl.sum(q * q, 1))
    per_length = 1 / tl.maximum(norm, guard)
    size = tl.abs(q) * per_length[:, None]
    hyperbolic = 1 - 2 / (exponential(2 * norm) + 1)  # tanh
    exponent = power * (offset + hyperbolic)
    log = tl.log(tl.where(size == 0, 1.0, size))
    value = tl.where(size == 0, 0.0, exponential(exponent[:, None] * log))
    return norm, per_length, size, hyperbolic, exponent, log, value


@triton.jit
def nala_reduce(
    k, v, table, state, key_mean, kb, kh, kn, kd, vb, vh, vn, vd, heads, tokens, dim, dim_v, tiles, splits,
    ROWS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, ROTARY: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state of one run of tokens of one head."""
    program = tl.program_id(0).to(tl.int64)
    head, split = program // splits, program % splits
    k += head // heads * kb + head % heads * kh
    v += head // heads * vb + head % heads * vh
    columns, columns_v = tl.arange(0, D), tl.arange(0, DV)
    s0, s1 = tl.zeros([D, DV], ACC), tl.zeros([D, DV], ACC)
    m0, m1 = tl.zeros([16, D], ACC), tl.zeros([16, D], ACC)
    for tile in range(split * tiles, tl.minimum((split + 1) * tiles, tl.cdiv(tokens, ROWS))):
        rows = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        key = load_tile(k, rows, columns, kn, kd, tokens, dim).to(ACC)
        value = load_tile(v, rows, columns_v, vn, vd, tokens, dim_v)
        angles = _angles(table, rows, columns, tokens, dim, key, ROTARY, ACC)
        cube = key * key * key
        k0, k1 = tl.maximum(cube, 0.0, NAN), tl.maximum(-cube, 0.0, NAN)
        s0 = dot(tl.trans(_turned(k0, angles, ROWS, D, ROTARY)), value, s0, DOT, ACC, PRECISION)
        s1 = dot(tl.trans(_turned(k1, angles, ROWS, D, ROTARY)), value, s1, DOT, ACC, PRECISION)
        m0 += column_sums(exchanged(k0), ROWS, D)
        m1 += column_sums(exchanged(k1), ROWS, D)
    place = state + program * 2 * dim * dim_v
    store_tile(place, s0 / tokens, columns, columns_v, dim_v, 1, dim, dim_v)
    store_tile(place + dim * dim_v, s1 / tokens, columns, columns_v, dim_v, 1, dim, dim_v)
    tl.store(key_mean + program * 2 * dim + columns, tl.sum(m0, 0) / tokens, mask=columns < dim)
    tl.store(key_mean + program * 2 * dim + dim + columns, tl.sum(m1, 0) / tokens, mask=columns < dim)


@triton.jit
def nala_apply(
    q, table, state, key_mean, out, qb, qh, qn, qd, ob, oh, on, od,
    heads, tokens, dim, dim_v, tiles, splits, power, offset, eps, guard,
    ROWS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, ROTARY: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The output of one run of queries of one head."""
    program = tl.program_id(0).to(tl.int64)
    head, split = program // splits, program % splits
    q += head // heads * qb + head % heads * qh
    out += head // heads * ob + head % heads * oh
    columns, columns_v = tl.arange(0, D), tl.arange(0, DV)
    place = state + head * 2 * dim * dim_v
    s0 = load_tile(place, columns, columns_v, dim_v, 1, dim, dim_v)
    s1 = load_tile(place + dim * dim_v, columns, columns_v, dim_v, 1, dim, dim_v)
    m0 = tl.load(key_mean + head * 2 * dim + columns, mask=columns < dim, other=0.0)
    m1 = tl.load(key_mean + head * 2 * dim + dim + columns, mask=columns < dim, other=0.0)
    for tile in range(split * tiles, tl.minimum((split + 1) * tiles, tl.cdiv(tokens, ROWS))):
        rows = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        raw = load_tile(q, rows, columns, qn, qd, tokens, dim).to(ACC)
        angles = _angles(table, rows, columns, tokens, dim, raw, ROTARY, ACC)
        _, _, _, _, _, _, value = _query(raw, power, offset, guard)
        q0, q1 = tl.where(raw < 0, 0.0, value), tl.where(raw > 0, 0.0, value)
        share = 1 / (tl.sum(q0 * m0[None, :] + q1 * m1[None, :], 1) + eps)
        y = dot(_turned(q0, angles, ROWS, D, ROTARY), s0, tl.zeros([ROWS, DV], ACC), DOT, ACC, PRECISION)
        y = dot(_turned(q1, angles, ROWS, D, ROTARY), s1, y, DOT, ACC, PRECISION)
        store_tile(out, y * share[:, None], rows, columns_v, on, od, tokens, dim_v)


@triton.jit
def nala_backward_queries(
    q, table, state, key_mean, grad, dq, dstate, dkey_mean, qb, qh, qn, qd, gb, gh, gn, gd, rb, rh, rn, rd,
    heads, tokens, dim, dim_v, tiles, splits, power, offset, eps, guard,
    ROWS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, ROTARY: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of one run of queries of one head, and that run's part of the gradients of the state."""
    program = tl.program_id(0).to(tl.int64)
    head, split = program // splits, program % splits
    q += head // heads * qb + head % heads * qh
    grad += head // heads * gb + head % heads * gh
    dq += head // heads * rb + head % heads * rh
    columns, columns_v = tl.arange(0, D), tl.arange(0, DV)
    place = state + head * 2 * dim * dim_v
    s0 = load_tile(place, columns, columns_v, dim_v, 1, dim, dim_v)
    s1 = load_tile(place + dim * dim_v, columns, columns_v, dim_v, 1, dim, dim_v)
    m0 = tl.load(key_mean + head * 2 * dim + columns, mask=columns < dim, other=0.0)
    m1 = tl.load(key_mean + head * 2 * dim + dim + columns, mask=columns < dim, other=0.0)
    ds0, ds1 = tl.zeros([D, DV], ACC), tl.zeros([D, DV], ACC)
    dm0, dm1 = tl.zeros([16, D], ACC), tl.zeros([16, D], ACC)
    for tile in range(split * tiles, tl.minimum((split + 1) * tiles, tl.cdiv(tokens, ROWS))):
        rows = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        raw = load_tile(q, rows, columns, qn, qd, tokens, dim).to(ACC)
        g = load_tile(grad, rows, columns_v, gn, gd, tokens, dim_v).to(ACC)
        angles = _angles(table, rows, columns, tokens, dim, raw, ROTARY, ACC)
        norm, per_length, size, hyperbolic, exponent, log, value = _query(raw, power, offset, guard)
        value = tl.where((rows < tokens)[:, None], value, 0.0)  # 0 / 0 beyond the last token, where the guard is 0
        q0, q1 = tl.where(raw < 0, 0.0, value), tl.where(raw > 0, 0.0, value)
        t0, t1 = _turned(q0, angles, ROWS, D, ROTARY), _turned(q1, angles, ROWS, D, ROTARY)
        share = 1 / (tl.sum(q0 * m0[None, :] + q1 * m1[None, :], 1) + eps)
        share = tl.where(rows < tokens, share, 0.0)  # else 0 times infinity, where eps is 0
        a = dot(t0, s0, tl.zeros([ROWS, DV], ACC), DOT, ACC, PRECISION)
        a = exchanged(dot(t1, s1, a, DOT, ACC, PRECISION))
        da = g * share[:, None]
        dz = -tl.sum(da * a, 1) * share
        ds0 = dot(tl.trans(t0), da, ds0, DOT, ACC, PRECISION)
        ds1 = dot(tl.trans(t1), da, ds1, DOT, ACC, PRECISION)
        dm0 += column_sums(q0 * dz[:, None], ROWS, D)
        dm1 += column_sums(q1 * dz[:, None], ROWS, D)
        d0 = dot(da, tl.trans(s0), tl.zeros([ROWS, D], ACC), DOT, ACC, PRECISION)
        d1 = dot(da, tl.trans(s1), tl.zeros([ROWS, D], ACC), DOT, ACC, PRECISION)
        d0 = _turned_back(exchanged(d0), angles, ROWS, D, ROTARY) + dz[:, None] * m0[None, :]
        d1 = _turned_back(exchanged(d1), angles, ROWS, D, ROTARY) + dz[:, None] * m1[None, :]
        dvalue = tl.where(raw > 0, d0, tl.where(raw < 0, d1, 0.0))
        # through the power, to direction and exponent, and through both to q
        slope = dvalue * value * exponent[:, None] / tl.where(size > 0, size, 1.0)
        direction, slope = raw * per_length[:, None], tl.where(raw < 0, -slope, slope)
        along = tl.where(norm > guard, tl.sum(slope * direction, 1), 0.0)
        dexponent = tl.sum(dvalue * value * log, 1) * power * (1 - hyperbolic * hyperbolic)
        dx = (slope - direction * along[:, None]) * per_length[:, None]
        dx += raw * (dexponent / tl.where(norm > 0, norm, 1.0))[:, None]
        store_tile(dq, dx, rows, columns, rn, rd, tokens, dim)
    place = dstate + program * 2 * dim * dim_v
    store_tile(place, ds0, columns, columns_v, dim_v, 1, dim, dim_v)
    store_tile(place + dim * dim_v, ds1, columns, columns_v, dim_v, 1, dim, dim_v)
    tl.store(dkey_mean + program * 2 * dim + columns, tl.sum(dm0, 0), mask=columns < dim)
    tl.store(dkey_mean + program * 2 * dim + dim + columns, tl.sum(dm1, 0), mask=columns < dim)


@triton.jit
def nala_backward_keys(
    k, v, table, dstate, dkey_mean, dk, dv, kb, kh, kn, kd, vb, vh, vn, vd, rb, rh, rn, rd, wb, wh, wn, wd,
    heads, tokens, dim, dim_v, tiles, splits,
    ROWS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, ROTARY: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of one run of tokens of one head."""
    program = tl.program_id(0).to(tl.int64)
    head, split = program // splits, program % splits
    k += head // heads * kb + head % heads * kh
    v += head // heads * vb + head % heads * vh
    dk += head // heads * rb + head % heads * rh
    dv += head // heads * wb + head % heads * wh
    columns, columns_v = tl.arange(0, D), tl.arange(0, DV)
    place = dstate + head * 2 * dim * dim_v
    ds0 = load_tile(place, columns, columns_v, dim_v, 1, dim, dim_v) / tokens
    ds1 = load_tile(place + dim * dim_v, columns, columns_v, dim_v, 1, dim, dim_v) / tokens
    dm0 = tl.load(dkey_mean + head * 2 * dim + columns, mask=columns < dim, other=0.0) / tokens
    dm1 = tl.load(dkey_mean + head * 2 * dim + dim + columns, mask=columns < dim, other=0.0) / tokens
    for tile in range(split * tiles, tl.minimum((split + 1) * tiles, tl.cdiv(tokens, ROWS))):
        rows = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        key = load_tile(k, rows, columns, kn, kd, tokens, dim).to(ACC)
        value = load_tile(v, rows, columns_v, vn, vd, tokens, dim_v)
        angles = _angles(table, rows, columns, tokens, dim, key, ROTARY, ACC)
        cube = key * key * key
        k0, k1 = tl.maximum(cube, 0.0, NAN), tl.maximum(-cube, 0.0, NAN)
        t0, t1 = _turned(k0, angles, ROWS, D, ROTARY), _turned(k1, angles, ROWS, D, ROTARY)
        dvalue = dot(t0, ds0, tl.zeros([ROWS, DV], ACC), DOT, ACC, PRECISION)
        dvalue = dot(t1, ds1, dvalue, DOT, ACC, PRECISION)
        store_tile(dv, dvalue, rows, columns_v, wn, wd, tokens, dim_v)
        d0 = dot(value, tl.trans(ds0), tl.zeros([ROWS, D], ACC), DOT, ACC, PRECISION)
        d1 = dot(value, tl.trans(ds1), tl.zeros([ROWS, D], ACC), DOT, ACC, PRECISION)
        d0 = _turned_back(d0, angles, ROWS, D, ROTARY) + dm0[None, :]
        d1 = _turned_back(d1, angles, ROWS, D, ROTARY) + dm1[None, :]
        dx = tl.where(key > 0, d0, -d1) * 3 * key * key
        store_tile(dk, dx, rows, columns, rn, rd, tokens, dim)


def _sizes(kernel: str, dim: int, dim_v: int, dtype: torch.dtype, rotary: bool) -> dict:
    """Tiles that need few instructions an element, spill few registers and fit in the shared memory of sm_80.

    PROGRAMS, see [cut]: as many as have room on a multiprocessor of compute capability 9.0 at once, in bfloat16; those
    left over would take as long again.
    """
    wide, full = max(dim, dim_v) > 32, dtype not in HALF
    sizes = {
        "reduce": dict(ROWS=32, num_warps=4, num_stages=2, PROGRAMS=2 if wide else 4),
        "apply": dict(ROWS=64, num_warps=4, num_stages=1, PROGRAMS=2 if wide else 3),
        "backward queries": dict(
            ROWS=32 if wide and not full else 16,
            num_warps=8 if wide else 4,
            num_stages=1,
            PROGRAMS=1 if wide else 3,
            maxnreg=None if wide or full else 168,
        ),
        "backward keys": dict(ROWS=32 if wide and full else 64, num_warps=8, num_stages=1, PROGRAMS=1 if wide else 2),
    }[kernel]
    types = dot_types(torch.float16 if dtype == torch.bfloat16 else dtype)  # TF32: powers are steep
    return dict(**sizes, D=padded(dim), DV=padded(dim_v), ROTARY=rotary, **types)


def launch_forward(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None,
    power: float, offset: float, eps: float, guard: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """out (B, heads, Nq, dim_v) and the state: (B heads, 2, dim, dim_v), (B heads, 2, dim)."""
    (batch, heads, queries, dim), (keys, dim_v) = q.shape, v.shape[-2:]
    tiled = dim, dim_v, q.dtype, table is not None
    out = tokens_first(v, batch, heads, queries, dim_v)
    with on_device(q):
        sizes = _sizes("reduce", *tiled)
        tiles, splits = cut(keys, sizes["ROWS"], batch * heads, q.device, sizes.pop("PROGRAMS"))
        new = lambda *shape: q.new_empty(batch * heads, splits, 2, *shape, dtype=sum_type(q.dtype))
        sums = new(dim, dim_v), new(dim)
        nala_reduce[(batch * heads * splits,)](
            k, v, table, *sums, *k.stride(), *v.stride(), heads, keys, dim, dim_v, tiles, splits, **sizes
        )
        state = [x.sum(1) for x in sums]
        sizes = _sizes("apply", *tiled)
        tiles, splits = cut(queries, sizes["ROWS"], batch * heads, q.device, sizes.pop("PROGRAMS"))
        nala_apply[(batch * heads * splits,)](
            q, table, *state, out, *q.stride(), *out.stride(),
            heads, queries, dim, dim_v, tiles, splits, power, offset, eps, guard, **sizes,
        )  # fmt: skip
    return out, *state


def launch_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, table: Tensor | None,
    state: Tensor, key_mean: Tensor, power: float, offset: float, eps: float, guard: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv."""
    (batch, heads, queries, dim), (keys, dim_v) = q.shape, v.shape[-2:]
    tiled = dim, dim_v, q.dtype, table is not None
    dq, dk, dv = (tokens_first(x, *x.shape) for x in (q, k, v))
    with on_device(q):
        sizes = _sizes("backward queries", *tiled)
        tiles, splits = cut(queries, sizes["ROWS"], batch * heads, q.device, sizes.pop("PROGRAMS"))
        new = lambda *shape: q.new_empty(batch * heads, splits, 2, *shape, dtype=sum_type(q.dtype))
        sums = new(dim, dim_v), new(dim)
        nala_backward_queries[(batch * heads * splits,)](
            q, table, state, key_mean, grad, dq, *sums, *q.stride(), *grad.stride(), *dq.stride(),
            heads, queries, dim, dim_v, tiles, splits, power, offset, eps, guard, **sizes,
        )  # fmt: skip
        dstate = [x.sum(1) for x in sums]
        sizes = _sizes("backward keys", *tiled)
        tiles, splits = cut(keys, sizes["ROWS"], batch * heads, q.device, sizes.pop("PROGRAMS"))
        nala_backward_keys[(batch * heads * splits,)](
            k, v, table, *dstate, dk, dv, *k.stride(), *v.stride(), *dk.stride(), *dv.stride(),
            heads, keys, dim, dim_v, tiles, splits, **sizes,
        )  # fmt: skip
    return dq, dk, dv


nala_forward = torch.library.custom_op("visionkit_kernels::nala_attention", launch_forward, mutates_args=())
nala_backward = torch.library.custom_op("visionkit_kernels::nala_attention_backward", launch_backward, mutates_args=())


@nala_forward.register_fake
def _(q, k, v, table, power, offset, eps, guard):  # noqa: ANN202
    (batch, heads, queries, dim), dim_v = q.shape, v.shape[-1]
    new = lambda *shape: q.new_empty(batch * heads, 2, *shape, dtype=sum_type(q.dtype))
    return tokens_first(v, batch, heads, queries, dim_v), new(dim, dim_v), new(dim)


@nala_backward.register_fake
def _(grad, q, k, v, *others):  # noqa: ANN002, ANN202
    return tuple(tokens_first(x, *x.shape) for x in (q, k, v))


def _setup(ctx, inputs, output) -> None:
    ctx.options = inputs[4:]
    ctx.save_for_backward(*inputs[:4], *output[1:])


def _backward(ctx, grad, *_) -> tuple:  # noqa: ANN002
    return *direct(nala_backward, launch_backward)(grad, *ctx.saved_tensors, *ctx.options), *[None] * 5


nala_forward.register_autograd(_backward, setup_context=_setup)
_run = differentiable(nala_forward, launch_forward, _setup, _backward)


def refuses(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the kernels do not take these tensors, or None."""
    if reason := shapes_differ(q, k, v):
        return reason
    if does_not_compile(q.dtype, q.device):
        return "Triton does not compile half precision for devices of compute capability 10"
    if max(q.shape[-1], v.shape[-1]) > LARGEST_HEAD or q.shape[-1] % 2:
        return f"heads must have an even number of channels, at most {LARGEST_HEAD}"
    if q.dtype == torch.float32 and max(q.shape[-1], v.shape[-1]) > 32 and little_shared_memory(q.device):
        return "float32 heads of more than 32 channels need more shared memory than the device has"
    return "a tensor is empty" if 0 in (*q.shape, *k.shape, *v.shape) else None


def nala_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rotary: tuple[Tensor, ...] | None = None,
    power: float = 3.0,
    offset: float = 0.5,
    eps: float = 1e-6,
    zero_guard: float = 1e-12,
) -> Tensor:
    """NaLa; arguments and result are those of ``visionkit.ops.nala_attention`` with features split by sign.

    No gradient flows to ``rotary``. Half-precision products are taken in TF32, sums in float32.
    """
    q, k, v = one_type(q, k, v)
    return _run(q, k, v, pairs(rotary, q, k), power, offset, eps, zero_guard)
