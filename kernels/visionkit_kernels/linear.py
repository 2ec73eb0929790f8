# ruff: noqa: ANN001, ANN201  (kernels take what lies on the device, and return nothing)
"""Linear attention without a mask, MALA among it, forward and backward.

With features phi, their rotation R (or none), N keys and s a scale, the state of a head is three means over keys,

    S = 1/N sum_j R phi(k_j)^T v_j    (dim x dim_v)
    m = 1/N sum_j phi(k_j)            (dim)
    u = 1/N sum_j v_j                 (dim_v)

and a row of the output is, with a = s R phi(q) S and z = s phi(q) . m,

    sum    a / (z + eps)
    rms    a sqrt(dim_v) / |a|
    none   a
    mala   a (1 + 1 / (z + eps sign z)) - z u

MALA's row may also take a local branch l and a gate o along: y = (row + l) o.

Forward: one pass over k and v reduces the state, by runs of tokens whose sums are added up afterwards, so that a single
head fills the device and the result repeats bit for bit; one pass over q applies it. Backward: one pass over q gives dq
and the gradients of the state, one over k and v gives dk and dv. No N x N and no feature ever reaches memory. Where a
wide head leaves no room for dS beside S, the pass over q writes da, and one more, forward's over q and da, sums dS.

Bytes moved then, in maps of N x dim_v: forward 6 (k, v; q, l, o, y) instead of 10, the attention's 4 and 3 each of an
addition and of a product. Backward 11 (q, dy, l, o, dq, dl, do; k, v, dk, dv) instead of 13, the attention's 7 and 6 of
the product's: only the pass over q reads dy, it has dl = dy o in registers, and do = dy (row + l) takes the row from
products that it needs anyway.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from visionkit_kernels._common import (
    HALF,
    column_sums,
    cut,
    does_not_compile,
    dot,
    dot_types,
    exchanged,
    feature,
    feature_slope,
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
from visionkit_kernels.tiles import capability, chosen

FEATURES = ("elu", "relu", "exp", "relu2", "none")
LARGEST_HEAD = 128
USUAL_HEAD = 64  # the state of a larger one only just fits, see config
# Four warps have no registers left for the tiles of a branch and a gate: forward in half precision, backward in others.
GATED = dict(num_warps=8, maxnreg=None, PROGRAMS=2)
OUTPUTS = ("sum", "rms", "none", "mala")


@triton.jit
def _features(
    x, table, first, rows, columns, row_stride, column_stride, count, dim,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, MAP: tl.constexpr, ROTARY: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Raw values, features, rotated features and rotary table of a tile that starts at row ``first``.

    Outside the matrix features are those of zero: they meet values, gradients and states that are zero there, or rows
    and columns that are never stored. Only a sum over rows must leave them out, and what divides by their sums.
    """
    raw = load_tile(x + first * row_stride, rows, columns, row_stride, column_stride, count, dim).to(ACC)
    plain = feature(raw, MAP)
    if ROTARY:
        angles = load_tile(table + first * dim, rows, columns, dim, 1, count, dim).to(ACC)
        turned = turn(plain, angles, ROWS, COLUMNS)
    else:
        angles, turned = plain, plain
    return raw, plain, turned, angles


@triton.jit
def _root(count, ACC: tl.constexpr):
    """Square root of an integer, which Triton may have made a constant."""
    return tl.sqrt(tl.full([1], count, ACC))


@triton.jit
def _back(
    by_state, by_z, angles, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ROTARY: tl.constexpr, TURN_Z: tl.constexpr
):  # fmt: skip
    """Gradient of the features from that of the state, which saw them turned, and that of z."""
    if not ROTARY:
        y = by_state + by_z
    elif TURN_Z:
        y = turn_back(exchanged(by_state) + by_z, angles, ROWS, COLUMNS)
    else:
        y = turn_back(exchanged(by_state), angles, ROWS, COLUMNS) + by_z
    return y


@triton.jit
def reduce_state(
    k, v, table, state, key_mean, value_mean,
    kb, kh, kn, kd, vb, vh, vn, vd, heads, tokens, dim, dim_v, tiles, splits, part,
    ROWS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, MAP: tl.constexpr, ROTARY: tl.constexpr,
    TURN_Z: tl.constexpr, OUTPUT: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums of one run of tokens of one head that an output needs, over N."""
    program = tl.program_id(0).to(tl.int64)
    head, split = program // splits, program % splits
    k += head // heads * kb + head % heads * kh
    v += head // heads * vb + head % heads * vh
    rows, columns, columns_v = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, DV)
    s = tl.zeros([D, DV], ACC)
    m = tl.zeros([16, D], ACC)
    u = tl.zeros([16, DV], ACC)
    for tile in range(split * tiles, tl.minimum((split + 1) * tiles, tl.cdiv(tokens, ROWS))):
        first = tl.cast(tile, tl.int64) * ROWS  # the interpreter's tiles are Python's numbers
        left = tl.minimum(tokens - first, ROWS).to(tl.int32)
        raw, plain, turned, _ = _features(k, table, first, rows, columns, kn, kd, left, dim, ROWS, D, MAP, ROTARY, ACC)
        value = load_tile(v + first * vn, rows, columns_v, vn, vd, left, dim_v)
        s = dot(tl.trans(turned), value, s, DOT, ACC, PRECISION)
        if OUTPUT == "sum" or OUTPUT == "mala":
            m += column_sums(tl.where((rows < left)[:, None], turned if TURN_Z else plain, 0.0), ROWS, D)
        if OUTPUT == "mala":
            u += column_sums(value.to(ACC), ROWS, DV)
    own = split * part
    over = tl.full([1], 1, ACC) / tokens  # a division for every number of the state would take as long as a tile
    store_tile(state + own + head * dim * dim_v, s * over[:, None], columns, columns_v, dim_v, 1, dim, dim_v)
    tl.store(key_mean + own + head * dim + columns, tl.sum(m, 0) * over, mask=columns < dim)
    tl.store(value_mean + own + head * dim_v + columns_v, tl.sum(u, 0) * over, mask=columns_v < dim_v)


@triton.jit
def apply_state(
    q, table, state, key_mean, value_mean, local, gate, out,
    qb, qh, qn, qd, lb, lh, ln, ld, tb, th, tn, td, ob, oh, on, od,
    heads, tokens, dim, dim_v, tiles, splits, scale, eps,
    ROWS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, MAP: tl.constexpr, ROTARY: tl.constexpr,
    TURN_Z: tl.constexpr, OUTPUT: tl.constexpr, GATED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The output of one run of queries of one head."""
    program = tl.program_id(0).to(tl.int64)
    head, split = program // splits, program % splits
    q += head // heads * qb + head % heads * qh
    out += head // heads * ob + head % heads * oh
    if GATED:
        local += head // heads * lb + head % heads * lh
        gate += head // heads * tb + head % heads * th
    rows, columns, columns_v = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, DV)
    s = load_tile(state + head * dim * dim_v, columns, columns_v, dim_v, 1, dim, dim_v).to(DOT)
    m = tl.load(key_mean + head * dim + columns, mask=columns < dim, other=0.0)
    u = tl.load(value_mean + head * dim_v + columns_v, mask=columns_v < dim_v, other=0.0)
    for tile in range(split * tiles, tl.minimum((split + 1) * tiles, tl.cdiv(tokens, ROWS))):
        first = tl.cast(tile, tl.int64) * ROWS
        left = tl.minimum(tokens - first, ROWS).to(tl.int32)
        if GATED:  # asked for before the products, which take a while
            branch = load_tile(local + first * ln, rows, columns_v, ln, ld, left, dim_v)
            factor = load_tile(gate + first * tn, rows, columns_v, tn, td, left, dim_v)
        raw, plain, turned, _ = _features(q, table, first, rows, columns, qn, qd, left, dim, ROWS, D, MAP, ROTARY, ACC)
        a = dot(turned, s, tl.zeros([ROWS, DV], ACC), DOT, ACC, PRECISION)
        if GATED:  # else it is exchanged when it is stored
            a = exchanged(a)
        if OUTPUT == "sum" or OUTPUT == "mala":
            z = tl.sum((turned if TURN_Z else plain) * m[None, :], 1) * scale
        # factors of a row are put together before they meet its channels
        if OUTPUT == "sum":
            y = a * (scale / (z + eps))[:, None]
        elif OUTPUT == "mala":
            y = a * (scale + scale / (z + tl.where(z < 0, -eps, eps)))[:, None] - z[:, None] * u[None, :]
        elif OUTPUT == "rms":
            length = tl.maximum(tl.sqrt(tl.sum(a * a, 1)) * scale, 1e-12)
            y = a * (scale * _root(dim_v, ACC) / length)[:, None]
        else:
            y = a * scale
        if GATED:
            y = (y + branch.to(ACC)) * factor.to(ACC)
        store_tile(out + first * on, y, rows, columns_v, on, od, left, dim_v)


@triton.jit
def backward_queries(
    q, table, state, key_mean, value_mean, local, gate, grad, dq, dlocal, dgate, dstate, dkey_mean, dvalue_mean, rest,
    qb, qh, qn, qd, lb, lh, ln, ld, tb, th, tn, td, gb, gh, gn, gd, rb, rh, rn, rd, wb, wh, wn, wd,
    heads, tokens, dim, dim_v, tiles, splits, part, scale, eps,
    ROWS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, MAP: tl.constexpr, ROTARY: tl.constexpr,
    TURN_Z: tl.constexpr, OUTPUT: tl.constexpr, GATED: tl.constexpr, KEEP: tl.constexpr, SUM_S: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq, dlocal and dgate of one run of queries of one head, and that run's part of the gradients of the state.

    KEEP: S stays with the program; where there is no room for it, it is read again for every tile. SUM_S: so does the
    gradient of S; where there is no room for it, ``rest`` (B x heads, Nq, dim_v) takes the gradient of a, from which
    [reduce_state] makes it.
    """
    tl.static_assert(OUTPUT == "mala" or not GATED)
    program = tl.program_id(0).to(tl.int64)
    head, split = program // splits, program % splits
    q += head // heads * qb + head % heads * qh
    grad += head // heads * gb + head % heads * gh
    dq += head // heads * rb + head % heads * rh
    if GATED:
        local += head // heads * lb + head % heads * lh
        gate += head // heads * tb + head % heads * th
        dlocal += head // heads * wb + head % heads * wh
        dgate += head // heads * wb + head % heads * wh
    rows, columns, columns_v = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, DV)
    if KEEP:
        s = load_tile(state + head * dim * dim_v, columns, columns_v, dim_v, 1, dim, dim_v).to(DOT)
    m = tl.load(key_mean + head * dim + columns, mask=columns < dim, other=0.0)
    u = tl.load(value_mean + head * dim_v + columns_v, mask=columns_v < dim_v, other=0.0)
    ds = tl.zeros([D, DV], ACC)
    dm = tl.zeros([16, D], ACC)
    du = tl.zeros([16, DV], ACC)
    for tile in range(split * tiles, tl.minimum((split + 1) * tiles, tl.cdiv(tokens, ROWS))):
        first = tl.cast(tile, tl.int64) * ROWS
        left = tl.minimum(tokens - first, ROWS).to(tl.int32)
        raw, plain, turned, angles = _features(
            q, table, first, rows, columns, qn, qd, left, dim, ROWS, D, MAP, ROTARY, ACC
        )
        g = load_tile(grad + first * gn, rows, columns_v, gn, gd, left, dim_v).to(ACC)
        if not KEEP:
            s = load_tile(state + head * dim * dim_v, columns, columns_v, dim_v, 1, dim, dim_v).to(DOT)
        if OUTPUT != "none":
            a = exchanged(dot(turned, s, tl.zeros([ROWS, DV], ACC), DOT, ACC, PRECISION))
        if OUTPUT == "sum" or OUTPUT == "mala":
            z = tl.sum((turned if TURN_Z else plain) * m[None, :], 1) * scale
        if OUTPUT == "sum":
            share = tl.where(rows < left, 1 / (z + eps), 0.0)  # else 0 times infinity, where eps is 0
            da = g * (scale * share)[:, None]
            dz = -tl.sum(g * a, 1) * (scale * share) * share
        elif OUTPUT == "mala":
            safe = z + tl.where(z < 0, -eps, eps)
            share = tl.where(rows < left, 1 / safe, 0.0)
            if GATED:
                y = a * (scale + scale * share)[:, None] - z[:, None] * u[None, :]
                y += load_tile(local + first * ln, rows, columns_v, ln, ld, left, dim_v).to(ACC)
                store_tile(dgate + first * wn, g * y, rows, columns_v, wn, wd, left, dim_v)
                g *= load_tile(gate + first * tn, rows, columns_v, tn, td, left, dim_v).to(ACC)
                store_tile(dlocal + first * wn, g, rows, columns_v, wn, wd, left, dim_v)
            da = g * (scale + scale * share)[:, None]
            dz = -tl.sum(g * (a * (scale * share)[:, None] + safe[:, None] * u[None, :]), 1) * share
            du -= column_sums(z[:, None] * g, ROWS, DV)
        elif OUTPUT == "rms":
            length = tl.sqrt(tl.sum(a * a, 1)) * scale
            share = scale / tl.maximum(length, 1e-12)
            along = tl.where(length > 1e-12, tl.sum(g * a, 1) * share * share, 0.0)
            da = (g - a * along[:, None]) * (share * _root(dim_v, ACC))[:, None]
        else:
            da = g * scale
        da = da.to(DOT)
        if not SUM_S:
            store_tile(rest + (head * tokens + first) * dim_v, da, rows, columns_v, dim_v, 1, left, dim_v)
        if not KEEP:  # again: kept until here it would take a program's registers
            s = load_tile(state + head * dim * dim_v, columns, columns_v, dim_v, 1, dim, dim_v).to(DOT)
        dx = dot(da, tl.trans(s), tl.zeros([ROWS, D], ACC), DOT, ACC, PRECISION)
        if SUM_S:
            ds = dot(tl.trans(turned), da, ds, DOT, ACC, PRECISION)
        if OUTPUT == "sum" or OUTPUT == "mala":
            dz *= scale
            dm += column_sums((turned if TURN_Z else plain) * dz[:, None], ROWS, D)
            dx = _back(dx, dz[:, None] * m[None, :], angles, ROWS, D, ROTARY, TURN_Z)
        elif ROTARY:
            dx = turn_back(exchanged(dx), angles, ROWS, D)
        store_tile(dq + first * rn, dx * feature_slope(raw, plain, MAP), rows, columns, rn, rd, left, dim)
    own = split * part
    if SUM_S:
        store_tile(dstate + own + head * dim * dim_v, ds, columns, columns_v, dim_v, 1, dim, dim_v)
    tl.store(dkey_mean + own + head * dim + columns, tl.sum(dm, 0), mask=columns < dim)
    tl.store(dvalue_mean + own + head * dim_v + columns_v, tl.sum(du, 0), mask=columns_v < dim_v)


@triton.jit
def backward_keys(
    k, v, table, dstate, dkey_mean, dvalue_mean, dk, dv,
    kb, kh, kn, kd, vb, vh, vn, vd, rb, rh, rn, rd, wb, wh, wn, wd, heads, tokens, dim, dim_v, tiles, splits,
    ROWS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, MAP: tl.constexpr, ROTARY: tl.constexpr,
    TURN_Z: tl.constexpr, KEEP: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of one run of tokens of one head; KEEP as in [backward_queries]."""
    program = tl.program_id(0).to(tl.int64)
    head, split = program // splits, program % splits
    k += head // heads * kb + head % heads * kh
    v += head // heads * vb + head % heads * vh
    dk += head // heads * rb + head % heads * rh
    dv += head // heads * wb + head % heads * wh
    rows, columns, columns_v = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, DV)
    over = tl.full([1, 1], 1, ACC) / tokens  # a division for every number of every tile would take long
    if KEEP:
        ds = (load_tile(dstate + head * dim * dim_v, columns, columns_v, dim_v, 1, dim, dim_v) / tokens).to(DOT)
    dm = tl.load(dkey_mean + head * dim + columns, mask=columns < dim, other=0.0) / tokens
    du = tl.load(dvalue_mean + head * dim_v + columns_v, mask=columns_v < dim_v, other=0.0) / tokens
    for tile in range(split * tiles, tl.minimum((split + 1) * tiles, tl.cdiv(tokens, ROWS))):
        first = tl.cast(tile, tl.int64) * ROWS
        left = tl.minimum(tokens - first, ROWS).to(tl.int32)
        raw, plain, turned, angles = _features(
            k, table, first, rows, columns, kn, kd, left, dim, ROWS, D, MAP, ROTARY, ACC
        )
        value = load_tile(v + first * vn, rows, columns_v, vn, vd, left, dim_v)
        if not KEEP:
            ds = (load_tile(dstate + head * dim * dim_v, columns, columns_v, dim_v, 1, dim, dim_v) * over).to(DOT)
        dvalue = dot(turned, ds, tl.zeros([ROWS, DV], ACC), DOT, ACC, PRECISION) + du[None, :]
        store_tile(dv + first * wn, dvalue, rows, columns_v, wn, wd, left, dim_v)
        if not KEEP:
            ds = (load_tile(dstate + head * dim * dim_v, columns, columns_v, dim_v, 1, dim, dim_v) * over).to(DOT)
        dx = dot(value, tl.trans(ds), tl.zeros([ROWS, D], ACC), DOT, ACC, PRECISION)
        dx = _back(dx, dm[None, :], angles, ROWS, D, ROTARY, TURN_Z)
        store_tile(dk + first * rn, dx * feature_slope(raw, plain, MAP), rows, columns, rn, rd, left, dim)


def config(kernel: str, dim: int, dim_v: int, dtype: torch.dtype, device: torch.device) -> dict:
    """Rows of a tile and warps of a program, by the size of the state that a program holds; PROGRAMS, see [cut].

    Chosen for bfloat16 heads of 64 on compute capability 9.0, where a multiprocessor has room for all its PROGRAMS at
    once and nothing spills; so that all others fit at all, heads of at most 64 in float32 into 99 KB of shared memory,
    wider ones into 163 KB.

    Args:
        kernel: ``"reduce"``, ``"apply"``, ``"backward queries"`` or ``"backward keys"``.
        dim, dim_v: channels of a head.
        dtype: of the operands.
        device: where it will run.
    """
    sizes = dict(D=padded(dim), DV=padded(dim_v), ROWS=64 if kernel == "apply" else 32)
    wide = max(dim, dim_v) > USUAL_HEAD
    if kernel == "backward queries" and (dtype == torch.float32 or (wide and dtype == torch.float16)):
        sizes["ROWS"] = 16  # more than 99 KB of shared memory otherwise, and registers that spill
    if wide and dtype not in HALF:
        sizes["ROWS"] = 16
    if kernel.startswith("backward"):
        sizes["KEEP"] = not wide or dtype in HALF
    if kernel == "backward queries":
        sizes["SUM_S"] = not wide or (dtype in HALF and capability(device) >= 90)
    sizes["PROGRAMS"] = 2 if kernel == "backward queries" else 4
    if wide:
        sizes.update(num_warps=8, num_stages=2 if dtype in HALF else 1)
    elif kernel == "apply":
        sizes.update(num_warps=4, num_stages=2, maxnreg=128 if dtype in HALF else None)
    elif kernel == "reduce":
        sizes.update(num_warps=4, num_stages=3 if dtype in HALF else 2, maxnreg=128 if dtype in HALF else None)
    else:
        sizes.update(num_warps=4, num_stages=1, maxnreg=128 if kernel == "backward keys" and dtype in HALF else None)
    return chosen(f"linear {kernel}", sizes, dtype, device)


def _switches(feature_map: str, rotary: bool, turn_z: bool, dtype: torch.dtype) -> dict:
    return dict(MAP=feature_map, ROTARY=rotary, TURN_Z=turn_z, **dot_types(dtype))


def _state_size(heads: int, dim: int, dim_v: int) -> int:
    return heads * (dim * dim_v + dim + dim_v)


def _split_state(state: Tensor, heads: int, dim: int, dim_v: int) -> tuple[Tensor, Tensor, Tensor]:
    """S (heads, dim, dim_v), m (heads, dim) and u (heads, dim_v) of a state's (..., size) numbers, or of one part's."""
    s, m, u = state.split([heads * dim * dim_v, heads * dim, heads * dim_v], dim=-1)
    return s, m, u


def _parts(like: Tensor, splits: int, heads: int, dim: int, dim_v: int) -> Tensor:
    """Room for the states of all runs; they are added up in one go."""
    return like.new_empty(splits, _state_size(heads, dim, dim_v), dtype=sum_type(like.dtype))


def _operand(dtype: torch.dtype) -> torch.dtype:
    """The type in which a product takes its operands, as a map in memory keeps them: see [dot_types]."""
    return torch.float32 if dtype == torch.float16 else dtype


def _strides(x: Tensor | None) -> tuple:
    """Of a (B, heads, N, dim) that may be left out: a kernel that never reads it takes none."""
    return (None,) * 4 if x is None else x.stride()


def _launch_reduce(k: Tensor, v: Tensor, table: Tensor | None, output: str, switches: dict) -> Tensor:
    """The state of all heads, see [_split_state]."""
    (batch, heads, tokens, dim), dim_v = k.shape, v.shape[-1]
    sizes = config("reduce", dim, dim_v, k.dtype, k.device)
    tiles, splits = cut(tokens, sizes["ROWS"], batch * heads, k.device, sizes.pop("PROGRAMS"))
    parts = _parts(k, splits, batch * heads, dim, dim_v)
    reduce_state[(batch * heads * splits,)](
        k, v, table, *_split_state(parts, batch * heads, dim, dim_v), *k.stride(), *v.stride(),
        heads, tokens, dim, dim_v, tiles, splits, parts.shape[1], OUTPUT=output, **sizes, **switches,
    )  # fmt: skip
    return parts.sum(0) if splits > 1 else parts[0]


def launch_forward(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, local: Tensor | None, gate: Tensor | None,
    feature_map: str, output: str, turn_z: bool, scale: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out (B, heads, Nq, dim_v) and the state of all heads, see [_split_state]."""
    (batch, heads, queries, dim), dim_v = q.shape, v.shape[-1]
    switches = _switches(feature_map, table is not None, turn_z, q.dtype)
    out = tokens_first(v, batch, heads, queries, dim_v)
    with on_device(q):
        state = _launch_reduce(k, v, table, output, switches)
        sizes = config("apply", dim, dim_v, q.dtype, q.device)
        if gate is not None and q.dtype in HALF:
            sizes.update(GATED)
        tiles, splits = cut(queries, sizes["ROWS"], batch * heads, q.device, sizes.pop("PROGRAMS"))
        apply_state[(batch * heads * splits,)](
            q, table, *_split_state(state, batch * heads, dim, dim_v), local, gate, out,
            *q.stride(), *_strides(local), *_strides(gate), *out.stride(),
            heads, queries, dim, dim_v, tiles, splits, scale, eps,
            OUTPUT=output, GATED=gate is not None, **sizes, **switches,
        )  # fmt: skip
    return out, state


linear_forward = torch.library.custom_op("visionkit_kernels::linear_attention", launch_forward, mutates_args=())


@linear_forward.register_fake
def _(q, k, v, *options):  # noqa: ANN001, ANN002, ANN202
    (batch, heads, queries, dim), dim_v = q.shape, v.shape[-1]
    state = q.new_empty(_state_size(batch * heads, dim, dim_v), dtype=sum_type(q.dtype))
    return tokens_first(v, batch, heads, queries, dim_v), state


def launch_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, local: Tensor | None, gate: Tensor | None,
    state: Tensor, feature_map: str, output: str, turn_z: bool, scale: float, eps: float,
) -> list[Tensor]:  # fmt: skip
    """dq, dk, dv and, with a gate, dlocal and dgate."""
    (batch, heads, queries, dim), (keys, dim_v) = q.shape, v.shape[-2:]
    switches = _switches(feature_map, table is not None, turn_z, q.dtype)
    dq, dk, dv, *gating = _gradients(q, k, v, gate)
    dlocal, dgate = gating or (None, None)
    with on_device(q):
        sizes = config("backward queries", dim, dim_v, q.dtype, q.device)
        if gate is not None and q.dtype not in HALF:
            sizes.update(GATED)
        tiles, splits = cut(queries, sizes["ROWS"], batch * heads, q.device, sizes.pop("PROGRAMS"))
        parts = _parts(q, splits, batch * heads, dim, dim_v)
        rest = None if sizes["SUM_S"] else q.new_empty(batch, heads, queries, dim_v, dtype=_operand(q.dtype))
        backward_queries[(batch * heads * splits,)](
            q, table, *_split_state(state, batch * heads, dim, dim_v), local, gate, grad, dq, dlocal, dgate,
            *_split_state(parts, batch * heads, dim, dim_v), rest, *q.stride(), *_strides(local), *_strides(gate),
            *grad.stride(), *dq.stride(), *_strides(dgate),
            heads, queries, dim, dim_v, tiles, splits, parts.shape[1], scale, eps,
            OUTPUT=output, GATED=gate is not None, **switches, **sizes,
        )  # fmt: skip
        dstate = _split_state(parts.sum(0) if splits > 1 else parts[0], batch * heads, dim, dim_v)
        if rest is not None:  # dS = sum_i R phi(q_i)^T da_i
            mean, *_ = _split_state(_launch_reduce(q, rest, table, "none", switches), batch * heads, dim, dim_v)
            torch.mul(mean, queries, out=dstate[0])
        sizes = config("backward keys", dim, dim_v, q.dtype, q.device)
        tiles, splits = cut(keys, sizes["ROWS"], batch * heads, q.device, sizes.pop("PROGRAMS"))
        backward_keys[(batch * heads * splits,)](
            k, v, table, *dstate, dk, dv, *k.stride(), *v.stride(), *dk.stride(), *dv.stride(),
            heads, keys, dim, dim_v, tiles, splits, **sizes, **switches,
        )  # fmt: skip
    return [dq, dk, dv, *gating]


def _gradients(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None) -> list[Tensor]:
    """Room for all gradients; those of the local branch and of the gate share their strides."""
    return [tokens_first(x, *x.shape) for x in (q, k, v) + (() if gate is None else (gate, gate))]


linear_backward = torch.library.custom_op(
    "visionkit_kernels::linear_attention_backward", launch_backward, mutates_args=()
)


@linear_backward.register_fake
def _(grad, q, k, v, table, local, gate, *options):  # noqa: ANN001, ANN002, ANN202
    return _gradients(q, k, v, gate)


def _setup(ctx, inputs, output) -> None:  # noqa: ANN001
    tensors, ctx.options = inputs[:6], inputs[6:]
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx, grad, *_) -> tuple:  # noqa: ANN001, ANN002
    dq, dk, dv, *gating = direct(linear_backward, launch_backward)(grad, *ctx.saved_tensors, *ctx.options)
    return dq, dk, dv, None, *(gating or [None] * 2), *[None] * len(ctx.options)


linear_forward.register_autograd(_backward, setup_context=_setup)
_run = differentiable(linear_forward, launch_forward, _setup, _backward)


def refuses(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the kernels do not take these tensors, or None."""
    if reason := shapes_differ(q, k, v):
        return reason
    if does_not_compile(q.dtype, q.device):
        return "Triton does not compile half precision for devices of compute capability 10"
    widest = max(q.shape[-1], v.shape[-1])
    if widest > LARGEST_HEAD or q.shape[-1] % 2:
        return f"heads must have an even number of channels, at most {LARGEST_HEAD}"
    if widest > USUAL_HEAD and little_shared_memory(q.device):
        return f"heads of more than {USUAL_HEAD} channels need more shared memory than the device has"
    return "a tensor is empty" if 0 in (*q.shape, *k.shape, *v.shape) else None


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, feature_map: str = "elu", output: str = "sum", eps: float = 1e-6
) -> Tensor:
    """Linear attention over all keys; see the top of the module.

    Args:
        q: (B, heads, Nq, dim), raw: the feature map is applied here. Any strides.
        k: (B, heads, Nk, dim).
        v: (B, heads, Nk, dim_v).
        feature_map: ``"elu"`` (elu + 1), ``"relu"``, ``"exp"``, ``"relu2"`` or ``"none"``.
        output: ``"sum"`` divides by the sum of the weights, ``"rms"`` gives every row the length sqrt(dim_v),
            ``"none"`` leaves the mean over keys.
        eps: added to the sum of the weights where it divides.

    Returns:
        (B, heads, Nq, dim_v), in the type of ``v``.

    Raises:
        ValueError: an unknown ``feature_map`` or ``output``.
    """
    if feature_map not in FEATURES or output not in OUTPUTS:
        raise ValueError(f"feature_map={feature_map!r}, output={output!r}: expected one of {FEATURES}, {OUTPUTS}")
    q, k, v = one_type(q, k, v)
    return _run(q, k, v, None, None, None, feature_map, output, False, 1.0, eps / k.shape[-2])


def mala_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rotary: tuple[Tensor, ...] | None = None,
    scale: float | None = None,
    eps: float = 1e-6,
    normalise_rotated: bool = False,
    local: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """MALA; arguments and result are those of ``visionkit.ops.mala_attention``. No gradient flows to ``rotary``."""
    if gate is not None:
        local, gate, _ = one_type(local, gate, v)
    q, k, v = one_type(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _run(q, k, v, pairs(rotary, q, k), local, gate, "elu", "mala", normalise_rotated, scale, eps)
