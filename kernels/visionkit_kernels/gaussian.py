# ruff: noqa: ANN001, ANN201  (kernels take what lies on the device, and return nothing)
"""Products with the Gaussian kernel of SOFT, whose m x N matrix is never stored, and a small matrix S between them.

With P = exp(-|l_i - s q_n|^2 / 2), landmarks l (m, a tile at a time) and tokens q scaled by s, the two products are

    project   W = P v      (m x dim_v), by runs of tokens whose sums are added up afterwards
    apply     y = P^T C    (N x dim_v), C = S W

Backward, dC = P dy is a projection too, and dW = S^T dC. With G = dW v^T + C dy^T, the gradient of P, and E = G P
elementwise, dl = s E q - l rowsum(E), dq = s E^T l - s^2 q colsum(E) and dv = P^T dW. P is recomputed from q and the
landmarks each time.

All products with P are in float32 (three TF32 products, two with what comes in half precision): the core C has large
entries of both signs that cancel. Rows beyond the end need no mask: they are loaded as zeros, and a zero value, core
row or gradient adds nothing.
"""

from contextlib import nullcontext
from functools import reduce

import torch
import triton
import triton.language as tl
from torch import Tensor

from visionkit_kernels._common import (
    HALF,
    LOG2_E,
    cut,
    dot,
    dot_types,
    little_shared_memory,
    load_tile,
    on_device,
    padded,
    shapes_differ,
    store_tile,
    sum_type,
    tokens_first,
)
from visionkit_kernels._direct import differentiable, direct

LARGEST_HEAD = 64
TILE = 64  # landmarks


@triton.jit
def _dot_with_half(a, b, acc, DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, HALF: tl.constexpr):
    """acc + a b in float32; two TF32 products, of parts of a, where b comes in half precision, which TF32 holds."""
    if HALF:
        high = (a.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)  # the bits that TF32 keeps
        acc = tl.dot(a - high, b.to(DOT), acc, input_precision="tf32", out_dtype=ACC)
        return tl.dot(high, b.to(DOT), acc, input_precision="tf32", out_dtype=ACC)
    return dot(a, b, acc, DOT, ACC, PRECISION)


@triton.jit
def _kernel_matrix(
    landmarks, q, scale, M: tl.constexpr, ROWS: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """P of one tile of tokens: (M, ROWS)."""
    product = _dot_with_half(landmarks, tl.trans(q), tl.zeros([M, ROWS], ACC), DOT, ACC, PRECISION, HALF)
    half_l = tl.sum(landmarks * landmarks, 1) * (LOG2_E / 2)
    half_q = tl.sum(q * q, 1) * (scale * scale * LOG2_E / 2)
    return tl.exp2(product * (scale * LOG2_E) - half_l[:, None] - half_q[None, :])


@triton.jit
def project_kernel(
    landmarks, q, v, out, qb, qh, qn, qd, vb, vh, vn, vd, heads, tokens, count, dim, dim_v, tiles, splits, scale,
    ROWS: tl.constexpr, M: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """P v of one run of tokens of one head."""
    program = tl.program_id(0).to(tl.int64)
    head, split = program // splits, program % splits
    q += head // heads * qb + head % heads * qh
    v += head // heads * vb + head % heads * vh
    spots, columns, columns_v = tl.arange(0, M), tl.arange(0, D), tl.arange(0, DV)
    l = load_tile(landmarks + head * count * dim, spots, columns, dim, 1, count, dim)
    w = tl.zeros([M, DV], ACC)
    for tile in range(split * tiles, tl.minimum((split + 1) * tiles, tl.cdiv(tokens, ROWS))):
        rows = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        token = load_tile(q, rows, columns, qn, qd, tokens, dim).to(ACC)
        value = load_tile(v, rows, columns_v, vn, vd, tokens, dim_v)
        p = _kernel_matrix(l, token, scale, M, ROWS, DOT, ACC, PRECISION, HALF)
        w = _dot_with_half(p, value, w, DOT, ACC, PRECISION, HALF)
    store_tile(out + program * count * dim_v, w, spots, columns_v, dim_v, 1, count, dim_v)


@triton.jit
def apply_kernel(
    landmarks, q, core, out, qb, qh, qn, qd, ob, oh, on, od, heads, tokens, count, dim, dim_v, tiles, splits, scale,
    ROWS: tl.constexpr, M: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """P^T C of one run of tokens of one head."""
    program = tl.program_id(0).to(tl.int64)
    head, split = program // splits, program % splits
    q += head // heads * qb + head % heads * qh
    out += head // heads * ob + head % heads * oh
    spots, columns, columns_v = tl.arange(0, M), tl.arange(0, D), tl.arange(0, DV)
    l = load_tile(landmarks + head * count * dim, spots, columns, dim, 1, count, dim)
    c = load_tile(core + head * count * dim_v, spots, columns_v, dim_v, 1, count, dim_v)
    for tile in range(split * tiles, tl.minimum((split + 1) * tiles, tl.cdiv(tokens, ROWS))):
        rows = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        token = load_tile(q, rows, columns, qn, qd, tokens, dim).to(ACC)
        p = _kernel_matrix(l, token, scale, M, ROWS, DOT, ACC, PRECISION, HALF)
        y = dot(tl.trans(p), c, tl.zeros([ROWS, DV], ACC), DOT, ACC, PRECISION)
        store_tile(out, y, rows, columns_v, on, od, tokens, dim_v)


@triton.jit
def gaussian_backward_kernel(
    landmarks, q, v, grad, core, dw, dq, dv, dlandmarks,
    qb, qh, qn, qd, vb, vh, vn, vd, gb, gh, gn, gd, rb, rh, rn, rd, wb, wh, wn, wd,
    heads, tokens, count, dim, dim_v, tiles, splits, scale,
    ROWS: tl.constexpr, M: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    AGAIN: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """dq, dv and the sum for dlandmarks of one run of tokens of one head, of both products at once.

    AGAIN: the core is read for every tile of tokens, as of wide heads shared memory does not hold it with all else.
    """
    program = tl.program_id(0).to(tl.int64)
    head, split = program // splits, program % splits
    q += head // heads * qb + head % heads * qh
    v += head // heads * vb + head % heads * vh
    grad += head // heads * gb + head % heads * gh
    dq += head // heads * rb + head % heads * rh
    dv += head // heads * wb + head % heads * wh
    spots, columns, columns_v = tl.arange(0, M), tl.arange(0, D), tl.arange(0, DV)
    l = load_tile(landmarks + head * count * dim, spots, columns, dim, 1, count, dim)
    if not AGAIN:
        c = load_tile(core + head * count * dim_v, spots, columns_v, dim_v, 1, count, dim_v)
    w = load_tile(dw + head * count * dim_v, spots, columns_v, dim_v, 1, count, dim_v)
    dl = tl.zeros([M, D], ACC)
    de = tl.zeros([M], ACC)
    for tile in range(split * tiles, tl.minimum((split + 1) * tiles, tl.cdiv(tokens, ROWS))):
        rows = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        token = load_tile(q, rows, columns, qn, qd, tokens, dim).to(ACC)
        p = _kernel_matrix(l, token, scale, M, ROWS, DOT, ACC, PRECISION, HALF)
        value = load_tile(v, rows, columns_v, vn, vd, tokens, dim_v)
        e = _dot_with_half(w, tl.trans(value), tl.zeros([M, ROWS], ACC), DOT, ACC, PRECISION, HALF)
        slope = load_tile(grad, rows, columns_v, gn, gd, tokens, dim_v)
        if AGAIN:
            c = load_tile(core + head * count * dim_v, spots, columns_v, dim_v, 1, count, dim_v)
        e = _dot_with_half(c, tl.trans(slope), e, DOT, ACC, PRECISION, HALF) * p
        dvalue = dot(tl.trans(p), w, tl.zeros([ROWS, DV], ACC), DOT, ACC, PRECISION)
        store_tile(dv, dvalue, rows, columns_v, wn, wd, tokens, dim_v)
        dl = _dot_with_half(e, token, dl, DOT, ACC, PRECISION, HALF)
        de += tl.sum(e, 1)
        dtoken = dot(tl.trans(e), l, tl.zeros([ROWS, D], ACC), DOT, ACC, PRECISION)
        dtoken = dtoken * scale - token * (tl.sum(e, 0) * (scale * scale))[:, None]
        store_tile(dq, dtoken, rows, columns, rn, rd, tokens, dim)
    dl = dl * scale - l * de[:, None]
    store_tile(dlandmarks + program * count * dim, dl, spots, columns, dim, 1, count, dim)


def _sizes(kernel: str, q: Tensor, count: int, dim_v: int) -> dict:
    """Four warps, as eight take twice the instructions for a token; eight where four have no registers left.

    PROGRAMS, see [cut]: as many as have room on a multiprocessor of compute capability 9.0 at once, one less of wide
    heads; those left over would take as long again.
    """
    wide = max(q.shape[-1], dim_v) > 32
    sizes = {
        "project": dict(ROWS=32, num_warps=4, PROGRAMS=4 - wide),
        "apply": dict(ROWS=64, num_warps=4, PROGRAMS=3 - wide),
        "backward": dict(ROWS=32, num_warps=8 if wide else 4, PROGRAMS=2 - wide, AGAIN=wide),
    }[kernel]
    # the parts of a product take shared memory, too
    half = q.dtype in HALF and not (wide and little_shared_memory(q.device))
    types = dict(dot_types(torch.promote_types(q.dtype, torch.float32)), HALF=half)
    return dict(**sizes, M=padded(count), D=padded(q.shape[-1]), DV=padded(dim_v), num_stages=1, **types)


def launch_project(landmarks: Tensor, q: Tensor, v: Tensor, scale: float) -> Tensor:
    """W = P v, (B, heads, m, dim_v), in the type of the landmarks."""
    (batch, heads, tokens, dim), dim_v, count = q.shape, v.shape[-1], landmarks.shape[-2]
    landmarks, sizes = landmarks.contiguous(), _sizes("project", q, count, dim_v)
    tiles, splits = cut(tokens, sizes["ROWS"], batch * heads, q.device, sizes.pop("PROGRAMS"))
    parts = landmarks.new_empty(batch, heads, splits, count, dim_v)
    with on_device(q):
        project_kernel[(batch * heads * splits,)](
            landmarks, q, v, parts, *q.stride(), *v.stride(),
            heads, tokens, count, dim, dim_v, tiles, splits, scale, **sizes,
        )  # fmt: skip
    return parts.sum(2)


def launch_apply(landmarks: Tensor, q: Tensor, core: Tensor, scale: float, like: Tensor) -> Tensor:
    """P^T C, (B, heads, N, dim_v), in the type of ``like``."""
    (batch, heads, tokens, dim), (count, dim_v) = q.shape, core.shape[-2:]
    landmarks, core, sizes = landmarks.contiguous(), core.contiguous(), _sizes("apply", q, count, dim_v)
    out = tokens_first(like, batch, heads, tokens, dim_v)
    tiles, splits = cut(tokens, sizes["ROWS"], batch * heads, q.device, sizes.pop("PROGRAMS"))
    with on_device(q):
        apply_kernel[(batch * heads * splits,)](
            landmarks, q, core, out, *q.stride(), *out.stride(),
            heads, tokens, count, dim, dim_v, tiles, splits, scale, **sizes,
        )  # fmt: skip
    return out


def launch_backward(
    landmarks: Tensor, q: Tensor, v: Tensor, grad: Tensor, core: Tensor, dw: Tensor, scale: float, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The landmarks' gradient as far as it comes of P, and dq and dv in the type of ``like``."""
    (batch, heads, tokens, dim), (count, dim_v) = q.shape, core.shape[-2:]
    landmarks, core, dw = landmarks.contiguous(), core.contiguous(), dw.contiguous()
    dq, dv = tokens_first(like, *q.shape), tokens_first(like, *v.shape)
    sizes = _sizes("backward", q, count, dim_v)
    tiles, splits = cut(tokens, sizes["ROWS"], batch * heads, q.device, sizes.pop("PROGRAMS"))
    parts = landmarks.new_empty(batch, heads, splits, count, dim)
    with on_device(q):
        gaussian_backward_kernel[(batch * heads * splits,)](
            landmarks, q, v, grad, core, dw, dq, dv, parts,
            *q.stride(), *v.stride(), *grad.stride(), *dq.stride(), *dv.stride(),
            heads, tokens, count, dim, dim_v, tiles, splits, scale, **sizes,
        )  # fmt: skip
    return parts.sum(2), dq, dv


def forward(landmarks: Tensor, q: Tensor, v: Tensor, small: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """y in the type of q, and W in that of the landmarks."""
    tiles = _tiles(landmarks)
    w = _project(tiles, q, v, scale)
    parts = zip(tiles, _tiles(_through(small, w)))
    out = reduce(Tensor.add_, (launch_apply(some, q, core, scale, _sums(tiles, q)) for some, core in parts))
    return out.to(q.dtype), w


def backward(
    grad: Tensor, landmarks: Tensor, q: Tensor, v: Tensor, small: Tensor, w: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of landmarks, q, v and the small matrix."""
    tiles = _tiles(landmarks)
    dcore = _project(tiles, q, grad, scale)
    # Wide before, not after: the small matrix, on both sides of its gradient, multiplies what that is rounded by.
    dsmall = _through(dcore.to(small.dtype), w.mT.to(small.dtype))
    parts = zip(tiles, _tiles(_through(small, w)), _tiles(_through(small.mT, dcore)))
    dlandmarks, dq, dv = [], 0, 0
    for some, core, dw in parts:
        dsome, *more = launch_backward(some, q, v, grad, core, dw, scale, _sums(tiles, q))
        dlandmarks.append(dsome)
        dq, dv = more if len(dlandmarks) == 1 else (dq.add_(more[0]), dv.add_(more[1]))
    return torch.cat(dlandmarks, -2), dq.to(q.dtype), dv.to(v.dtype), dsmall


def _tiles(x: Tensor) -> tuple[Tensor, ...]:
    """Even runs of landmarks, or of what there is one row of for each, that a kernel takes at once."""
    return x.chunk(-(-x.shape[-2] // TILE), -2)


def _sums(tiles: tuple[Tensor, ...], q: Tensor) -> Tensor:
    """Of what type a map of tokens is to be: what is added up over tiles cancels, and is wider."""
    return q if len(tiles) == 1 else tiles[0]


def _project(tiles: tuple[Tensor, ...], q: Tensor, v: Tensor, scale: float) -> Tensor:
    return torch.cat([launch_project(some, q, v, scale) for some in tiles], -2)


def _through(small: Tensor, x: Tensor) -> Tensor:
    """The product, taken in the type of the small matrix, in that of ``x``; no automatic cast has a part in it."""
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
        return (small @ x.to(small.dtype)).to(x.dtype)


gaussian_forward = torch.library.custom_op("visionkit_kernels::gaussian", forward, mutates_args=())
gaussian_backward = torch.library.custom_op("visionkit_kernels::gaussian_backward", backward, mutates_args=())


@gaussian_forward.register_fake
def _(landmarks, q, v, small, scale):  # noqa: ANN202
    return tokens_first(q, *v.shape), landmarks.new_empty(*landmarks.shape[:3], v.shape[-1])


@gaussian_backward.register_fake
def _(grad, landmarks, q, v, small, w, scale):  # noqa: ANN202
    maps = tokens_first(q, *q.shape), tokens_first(v, *v.shape)
    return landmarks.new_empty(landmarks.shape), *maps, small.new_empty(small.shape)


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx, grad, *_) -> tuple:  # noqa: ANN002
    return *direct(gaussian_backward, backward)(grad, *ctx.saved_tensors, ctx.scale), None


gaussian_forward.register_autograd(_backward, setup_context=_setup)
_run = differentiable(gaussian_forward, forward, _setup, _backward)


def refuses(landmarks: Tensor, q: Tensor, v: Tensor) -> str | None:
    """Why the kernels do not take these tensors, or None."""
    if reason := shapes_differ(landmarks, q, v):
        return reason
    if any(x.numel() == 0 for x in (landmarks, q, v)):
        return "a tensor is empty"
    widest = max(q.shape[-1], v.shape[-1])
    if widest > LARGEST_HEAD:
        return f"at most {LARGEST_HEAD} channels a head"
    if v.dtype == torch.float32 and widest > 32 and little_shared_memory(v.device):
        return "heads of more than 32 channels need more shared memory in float32 than the device has"
    return None


def gaussian_attention(landmarks: Tensor, q: Tensor, v: Tensor, small: Tensor, scale: float) -> Tensor:
    """P^T small P v with P = exp(-|l_i - scale q_n|^2 / 2), which is never stored.

    Args:
        landmarks: (B, heads, m, dim), of at most 64 channels. Each 64 of them, at most, are passes over q and v.
        q: (B, heads, N, dim), raw. Any strides.
        v: (B, heads, N, dim_v).
        small: (B, heads, m, m), in float32 or float64, in which its products are taken.
        scale: what q is multiplied by.

    Returns:
        (B, heads, N, dim_v), in the type of ``v``. It has gradients for all tensors.
    """
    return _run(landmarks.to(sum_type(v.dtype)), q.to(v.dtype), v, small, scale)
