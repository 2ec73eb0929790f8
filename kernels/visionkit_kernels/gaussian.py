# ruff: noqa: ANN001, ANN201  (kernels take what lies on the device, and return nothing)
"""Products with the Gaussian kernel of SOFT, whose m x N matrix is never stored, and Newton's steps for its inverse.

With P = exp(-|l_i - s q_n|^2 / 2), landmarks l (m, a tile at a time) and tokens q scaled by s, the two products are

    project   W = P v      (m x dim_v), by runs of tokens whose sums are added up afterwards
    apply     y = P^T C    (N x dim_v)

Both recompute P from q and the landmarks, and so do their backward passes. With G the gradient of P and E = G P
elementwise, dl = s E q - l rowsum(E) and dq = s E^T l - s^2 q colsum(E); G is dW v^T for the one, C dy^T for the other.

All products are in float32 (three TF32 products): the core C has large entries of both signs that cancel. Rows beyond
the end need no mask: they are loaded as zeros, and a zero value, core row or gradient adds nothing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from visionkit_kernels._common import (
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

LARGEST_HEAD = 64
TILE = 64  # landmarks


@triton.jit
def _kernel_matrix(
    landmarks, q, scale, M: tl.constexpr, ROWS: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P of one tile of tokens: (M, ROWS)."""
    product = dot(landmarks, tl.trans(q), tl.zeros([M, ROWS], ACC), DOT, ACC, PRECISION)
    half_l = tl.sum(landmarks * landmarks, 1) * (LOG2_E / 2)
    half_q = tl.sum(q * q, 1) * (scale * scale * LOG2_E / 2)
    return tl.exp2(product * (scale * LOG2_E) - half_l[:, None] - half_q[None, :])


@triton.jit
def project_kernel(
    landmarks, q, v, out, qb, qh, qn, qd, vb, vh, vn, vd, heads, tokens, count, dim, dim_v, tiles, splits, scale,
    ROWS: tl.constexpr, M: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
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
        p = _kernel_matrix(l, token, scale, M, ROWS, DOT, ACC, PRECISION)
        w = dot(p, value, w, DOT, ACC, PRECISION)
    store_tile(out + program * count * dim_v, w, spots, columns_v, dim_v, 1, count, dim_v)


@triton.jit
def apply_kernel(
    landmarks, q, core, out, qb, qh, qn, qd, ob, oh, on, od, heads, tokens, count, dim, dim_v, tiles, splits, scale,
    ROWS: tl.constexpr, M: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
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
        p = _kernel_matrix(l, token, scale, M, ROWS, DOT, ACC, PRECISION)
        y = dot(tl.trans(p), c, tl.zeros([ROWS, DV], ACC), DOT, ACC, PRECISION)
        store_tile(out, y, rows, columns_v, on, od, tokens, dim_v)


@triton.jit
def gaussian_backward_kernel(
    landmarks, q, x, small, dq, dx, dlandmarks, dsmall,
    qb, qh, qn, qd, xb, xh, xn, xd, rb, rh, rn, rd, wb, wh, wn, wd,
    heads, tokens, count, dim, dim_v, tiles, splits, scale,
    ROWS: tl.constexpr, M: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, PROJECT: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Backward of both products for one run of tokens of one head.

    Of project, x is v, small is dW, and dx = P^T dW is dv. Of apply, x is dy, small is C, and dsmall = P dy is dC.
    """
    program = tl.program_id(0).to(tl.int64)
    head, split = program // splits, program % splits
    q += head // heads * qb + head % heads * qh
    x += head // heads * xb + head % heads * xh
    dq += head // heads * rb + head % heads * rh
    if PROJECT:
        dx += head // heads * wb + head % heads * wh
    spots, columns, columns_v = tl.arange(0, M), tl.arange(0, D), tl.arange(0, DV)
    l = load_tile(landmarks + head * count * dim, spots, columns, dim, 1, count, dim)
    c = load_tile(small + head * count * dim_v, spots, columns_v, dim_v, 1, count, dim_v)
    dl = tl.zeros([M, D], ACC)
    de = tl.zeros([M], ACC)
    dc = tl.zeros([M, DV], ACC)
    for tile in range(split * tiles, tl.minimum((split + 1) * tiles, tl.cdiv(tokens, ROWS))):
        rows = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        token = load_tile(q, rows, columns, qn, qd, tokens, dim).to(ACC)
        value = load_tile(x, rows, columns_v, xn, xd, tokens, dim_v)
        p = _kernel_matrix(l, token, scale, M, ROWS, DOT, ACC, PRECISION)
        e = dot(c, tl.trans(value), tl.zeros([M, ROWS], ACC), DOT, ACC, PRECISION) * p
        if PROJECT:
            dvalue = dot(tl.trans(p), c, tl.zeros([ROWS, DV], ACC), DOT, ACC, PRECISION)
            store_tile(dx, dvalue, rows, columns_v, wn, wd, tokens, dim_v)
        else:
            dc = dot(p, value, dc, DOT, ACC, PRECISION)
        dl = dot(e, token, dl, DOT, ACC, PRECISION)
        de += tl.sum(e, 1)
        dtoken = dot(tl.trans(e), l, tl.zeros([ROWS, D], ACC), DOT, ACC, PRECISION)
        dtoken = dtoken * scale - token * (tl.sum(e, 0) * (scale * scale))[:, None]
        store_tile(dq, dtoken, rows, columns, rn, rd, tokens, dim)
    dl = dl * scale - l * de[:, None]
    store_tile(dlandmarks + program * count * dim, dl, spots, columns, dim, 1, count, dim)
    if not PROJECT:
        store_tile(dsmall + program * count * dim_v, dc, spots, columns_v, dim_v, 1, count, dim_v)


@triton.jit
def newton_kernel(a, start, out, count, steps, M: tl.constexpr, ACC: tl.constexpr):
    """All steps V <- 2 V - V A V of one matrix; zeros around it stay zeros."""
    place = tl.program_id(0).to(tl.int64) * count * count
    spots = tl.arange(0, M)
    matrix = load_tile(a + place, spots, spots, count, 1, count, count)
    v = load_tile(start + place, spots, spots, count, 1, count, count)
    for _ in range(steps):
        av = dot(matrix, v, tl.zeros([M, M], ACC), ACC, ACC, "ieee")
        v = 2 * v - dot(v, av, tl.zeros([M, M], ACC), ACC, ACC, "ieee")
    store_tile(out + place, v, spots, spots, count, 1, count, count)


def _sizes(kernel: str, count: int, dim: int, dim_v: int, dtype: torch.dtype) -> dict:
    """Four warps, as eight take twice the instructions for a token; eight where four have no registers left.

    PROGRAMS, see [cut]: as many as have room on a multiprocessor of compute capability 9.0 at once, one less of wide
    heads; those left over would take as long again.
    """
    wide = max(dim, dim_v) > 32
    sizes = {
        "project": dict(ROWS=32, num_warps=4, PROGRAMS=4 - wide),
        "apply": dict(ROWS=64, num_warps=4, PROGRAMS=3 - wide),
        "backward": dict(ROWS=32, num_warps=8 if wide else 4, PROGRAMS=2 - wide),
    }[kernel]
    types = dot_types(torch.promote_types(dtype, torch.float32))
    return dict(**sizes, M=padded(count), D=padded(dim), DV=padded(dim_v), num_stages=1, **types)


def launch_project(landmarks: Tensor, q: Tensor, v: Tensor, scale: float) -> Tensor:
    """W = P v, (B, heads, m, dim_v), in the type of the landmarks."""
    (batch, heads, tokens, dim), dim_v, count = q.shape, v.shape[-1], landmarks.shape[-2]
    landmarks, sizes = landmarks.contiguous(), _sizes("project", count, dim, dim_v, q.dtype)
    tiles, splits = cut(tokens, sizes["ROWS"], batch * heads, q.device, sizes.pop("PROGRAMS"))
    parts = landmarks.new_empty(batch, heads, splits, count, dim_v)
    with on_device(q):
        project_kernel[(batch * heads * splits,)](
            landmarks, q, v, parts, *q.stride(), *v.stride(),
            heads, tokens, count, dim, dim_v, tiles, splits, scale, **sizes,
        )  # fmt: skip
    return parts.sum(2)


def launch_apply(landmarks: Tensor, q: Tensor, core: Tensor, scale: float) -> Tensor:
    """P^T C, (B, heads, N, dim_v), in the type of q."""
    (batch, heads, tokens, dim), (count, dim_v) = q.shape, core.shape[-2:]
    landmarks, core, sizes = landmarks.contiguous(), core.contiguous(), _sizes("apply", count, dim, dim_v, q.dtype)
    out = tokens_first(q, batch, heads, tokens, dim_v)
    tiles, splits = cut(tokens, sizes["ROWS"], batch * heads, q.device, sizes.pop("PROGRAMS"))
    with on_device(q):
        apply_kernel[(batch * heads * splits,)](
            landmarks, q, core, out, *q.stride(), *out.stride(),
            heads, tokens, count, dim, dim_v, tiles, splits, scale, **sizes,
        )  # fmt: skip
    return out


def launch_backward(
    landmarks: Tensor, q: Tensor, x: Tensor, small: Tensor, scale: float, project: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dlandmarks, dq, and dv of project or dC of apply."""
    (batch, heads, tokens, dim), (count, dim_v) = q.shape, small.shape[-2:]
    landmarks, small = landmarks.contiguous(), small.contiguous()
    sizes = _sizes("backward", count, dim, dim_v, q.dtype)
    tiles, splits = cut(tokens, sizes["ROWS"], batch * heads, q.device, sizes.pop("PROGRAMS"))
    dq = tokens_first(q, batch, heads, tokens, dim)
    dx = tokens_first(x, batch, heads, tokens, dim_v) if project else None
    dlandmarks = landmarks.new_empty(batch, heads, splits, count, dim)
    dsmall = None if project else small.new_empty(batch, heads, splits, count, dim_v)
    with on_device(q):
        gaussian_backward_kernel[(batch * heads * splits,)](
            landmarks, q, x, small, dq, dx, dlandmarks, dsmall,
            *q.stride(), *x.stride(), *dq.stride(), *(dx.stride() if project else (0, 0, 0, 0)),
            heads, tokens, count, dim, dim_v, tiles, splits, scale, PROJECT=project, **sizes,
        )  # fmt: skip
    return dlandmarks.sum(2), dq, dx if project else dsmall.sum(2)


def launch_newton(a: Tensor, start: Tensor, steps: int) -> Tensor:
    """The matrices after so many steps."""
    count, a, start = a.shape[-1], a.contiguous(), start.contiguous()
    out = torch.empty_like(a)
    with on_device(a):
        newton_kernel[(a.numel() // count**2,)](
            a, start, out, count, steps,
            M=padded(count), ACC=dot_types(a.dtype)["ACC"], num_warps=8, enable_fp_fusion=True,
        )  # fmt: skip
    return out


project_forward = torch.library.custom_op("visionkit_kernels::gaussian_project", launch_project, mutates_args=())
apply_forward = torch.library.custom_op("visionkit_kernels::gaussian_apply", launch_apply, mutates_args=())
gaussian_backward = torch.library.custom_op("visionkit_kernels::gaussian_backward", launch_backward, mutates_args=())
newton_forward = torch.library.custom_op("visionkit_kernels::newton_steps", launch_newton, mutates_args=())


@project_forward.register_fake
def _(landmarks, q, v, scale):  # noqa: ANN202
    return landmarks.new_empty(*landmarks.shape[:3], v.shape[-1])


@apply_forward.register_fake
def _(landmarks, q, core, scale):  # noqa: ANN202
    return tokens_first(q, *q.shape[:3], core.shape[-1])


@gaussian_backward.register_fake
def _(landmarks, q, x, small, scale, project):  # noqa: ANN202
    last = tokens_first(x, *x.shape) if project else small.new_empty(small.shape)
    return landmarks.new_empty(landmarks.shape), tokens_first(q, *q.shape), last


@newton_forward.register_fake
def _(a, start, steps):  # noqa: ANN202
    return a.new_empty(a.shape)


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _project_backward(ctx, grad) -> tuple:
    landmarks, q, v = ctx.saved_tensors
    return *gaussian_backward(landmarks, q, v, grad, ctx.scale, True), None


def _apply_backward(ctx, grad) -> tuple:
    landmarks, q, core = ctx.saved_tensors
    dlandmarks, dq, dcore = gaussian_backward(landmarks, q, grad, core, ctx.scale, False)
    return dlandmarks, dq, dcore, None


project_forward.register_autograd(_project_backward, setup_context=_setup)
apply_forward.register_autograd(_apply_backward, setup_context=_setup)


def refuses(*tensors: Tensor) -> str | None:
    """Why the kernels do not take (landmarks, q, v), or the two matrices of Newton's steps; None where they do."""
    if any(x.numel() == 0 for x in tensors):
        return "a tensor is empty"
    widest, count = max(x.shape[-1] for x in tensors), tensors[0].shape[-2]
    if widest > LARGEST_HEAD:
        return f"at most {LARGEST_HEAD} channels a head, and rows of a matrix"
    full = tensors[-1].dtype == torch.float32 or count > TILE
    if len(tensors) == 3 and full and widest > 32 and little_shared_memory(tensors[-1].device):
        return "heads of more than 32 channels need more shared memory in float32 than the device has"
    if len(tensors) == 2 and torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "gradients run through every step"
    return shapes_differ(*tensors) if len(tensors) == 3 else None


def gaussian_project(landmarks: Tensor, q: Tensor, v: Tensor, scale: float) -> Tensor:
    """W = P v with P = exp(-|l_i - scale q_n|^2 / 2), which is never stored.

    Args:
        landmarks: (B, heads, m, dim), of at most 64 channels. Above 64 landmarks each tile of them is a pass over q and
            v, in float32, for their gradients are sums that cancel.
        q: (B, heads, N, dim), raw. Any strides.
        v: (B, heads, N, dim_v).
        scale: what q is multiplied by.

    Returns:
        (B, heads, m, dim_v), in float32 (float64 for float64).
    """
    landmarks, q, parts = landmarks.to(sum_type(v.dtype)), q.to(v.dtype), -(-landmarks.shape[-2] // TILE)
    if parts == 1:
        return project_forward(landmarks, q, v, scale)
    q, v = q.to(landmarks.dtype), v.to(landmarks.dtype)
    return torch.cat([project_forward(part, q, v, scale) for part in landmarks.chunk(parts, -2)], -2)


def gaussian_apply(landmarks: Tensor, q: Tensor, core: Tensor, scale: float) -> Tensor:
    """P^T core, P as in [gaussian_project]: (B, heads, m, dim_v) -> (B, heads, N, dim_v), in the type of q."""
    wide, parts = sum_type(q.dtype), -(-landmarks.shape[-2] // TILE)
    landmarks, core = landmarks.to(wide), core.to(wide)
    if parts == 1:
        return apply_forward(landmarks, q, core, scale)
    pieces, full = zip(landmarks.chunk(parts, -2), core.chunk(parts, -2)), q.to(wide)
    return sum(apply_forward(some, full, their, scale) for some, their in pieces).to(q.dtype)


def newton_steps(a: Tensor, start: Tensor, steps: int) -> Tensor:
    """V <- 2 V - V A V, so often, in one launch: (..., m, m), m at most 64, float32 or float64. No gradient."""
    return newton_forward(a, start.to(a.dtype), steps)
