# ruff: noqa: ANN001, ANN201  (kernels take what lies on the device, and return nothing)
"""Depthwise convolution of maps whose channels lie together, (B, H, W, C), with zeros beyond their edges.

    y_hwc = b_c + sum_ij a_ijc x_(h+i)(w+j)c,   i, j = -K/2 .. K/2

A residual x + y is the same with 1 more in the middle of a. Backward, dx is that convolution of dy with the kernel
turned around, and

    da_ijc = sum_hw dy_hwc x_(h+i)(w+j)c,   db_c = sum_hw dy_hwc.

Where x is GELU of another map, whose gradient is dx times GELU's slope there, the pass that makes dx multiplies.

A program walks down a strip of the map, for a block of channels. It holds the kernel, or all sums for its gradient, in
registers, reads each row K times, moved by a column at a time (all but the first from the cache), and adds it to the K
rows that it has a part in. The map passes through memory once; there is nothing to multiply as matrices.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from visionkit_kernels._common import cut, on_device, sum_options, sum_type
from visionkit_kernels._direct import differentiable, direct
from visionkit_kernels._gelu import gelu_with_slope
from visionkit_kernels.tiles import chosen

SIZES = (3, 5)
RUN = 16  # rows of a program's part of a map, at most
CELLS = 512  # of it in a row: columns times channels
# else Triton compiles again for maps whose sides, or what is made of them, are 1 or multiples of 16, and not
SIZES_OF_MAPS = ["height", "width", "runs", "across", "run", "parts", "share"]


@triton.jit
def _place(part, runs, across, run, COLUMNS: tl.constexpr):
    """A part's image, first row and columns."""
    image = (part // (runs * across)).to(tl.int64)
    return image, part // across % runs * run, part % across * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit
def _row(x, row, columns, spots, row_stride, column_stride, spot_stride, top, bottom, width, channels):
    """One row of a map (columns, channels), zero outside of these rows and beyond its edges."""
    inside = (row >= top) & (row < bottom) & (columns >= 0) & (columns < width)
    place = columns[:, None].to(tl.int64) * column_stride + spots[None, :].to(tl.int64) * spot_stride
    mask = inside[:, None] & (spots < channels)[None, :]
    return tl.load(x + tl.cast(row, tl.int64) * row_stride + place, mask=mask, other=0.0)


@triton.jit
def _rows(x, row, columns, spots, xh, xw, xc, height, width, channels, K: tl.constexpr):
    """K rows of a map, each K times, moved by a column at a time: all are asked for before one is used."""
    near = ()
    for entry in tl.static_range(K * K):
        shifted = columns + entry % K - K // 2
        near = near + (_row(x, row + entry // K, shifted, spots, xh, xw, xc, 0, height, width, channels),)
    return near


@triton.jit(do_not_specialize=SIZES_OF_MAPS[:-2])
def depthwise_kernel(
    x, weight, bias, before, out, xb, xh, xw, xc, height, width, channels, runs, across, blocks, run,
    K: tl.constexpr, TURNED: tl.constexpr, RESIDUAL: tl.constexpr,
    COLUMNS: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The convolution of one part of a map; TURNED by half a turn the kernel takes gradients back, times GELU's slope
    at a map ``before`` it, if there is one."""
    program = tl.program_id(0)
    spots = program % blocks * C + tl.arange(0, C)
    image, top, columns = _place(program // blocks, runs, across, run, COLUMNS)
    bottom = tl.minimum(top + run, height)
    weights, sums, start = (), (), tl.zeros([COLUMNS, C], ACC)
    if bias is not None:
        start += tl.load(bias + spots, mask=spots < channels, other=0.0).to(ACC)[None, :]
    for entry in tl.static_range(K * K):
        a = tl.load(weight + (K * K - 1 - entry if TURNED else entry) * channels + spots, mask=spots < channels).to(ACC)
        if RESIDUAL and entry == K * K // 2:
            a += 1
        weights = weights + (a[None, :],)
    for _ in tl.static_range(K):
        sums = sums + (start,)
    for row in range(top - K // 2, bottom + K // 2, K):
        near = _rows(x + image * xb, row, columns, spots, xh, xw, xc, height, width, channels, K)
        raw = ()
        if before is not None:
            own = before + image * height * width * channels
            for i in tl.static_range(K):
                here = row + i - K // 2
                raw = raw + (
                    _row(own, here, columns, spots, width * channels, channels, 1, top, bottom, width, channels),
                )
        for i in tl.static_range(K):
            later = ()
            for j in tl.static_range(K):  # outputs from K // 2 rows above to K // 2 rows below
                y = sums[j]
                for entry in tl.static_range(K):
                    y += near[i * K + entry].to(ACC) * weights[(K - 1 - j) * K + entry]
                if j == 0:
                    done = y
                else:
                    later = later + (y,)
            sums = later + (start,)
            if before is not None:
                done *= gelu_with_slope(raw[i].to(ACC))[1]
            here = row + i - K // 2
            inside = ((columns < width) & (here >= top) & (here < bottom))[:, None] & (spots < channels)[None, :]
            place = ((image * height + here) * width + columns)[:, None] * channels + spots[None, :]
            tl.store(out + place, done.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES_OF_MAPS)
def depthwise_weight_kernel(
    x, grad, out, xb, xh, xw, xc, gb, gh, gw, gc, height, width, channels, runs, across, blocks, run, parts, share,
    K: tl.constexpr, COLUMNS: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums over a share of the parts: (K * K + 1, C), the bias's last."""
    program = tl.program_id(0)
    spots = program % blocks * C + tl.arange(0, C)
    split = program // blocks
    zero = tl.zeros([COLUMNS, C], ACC)
    sums, total = (), zero
    for _ in tl.static_range(K * K):
        sums = sums + (zero,)
    for part in range(split * share, tl.minimum((split + 1) * share, parts)):
        image, top, columns = _place(part, runs, across, run, COLUMNS)
        bottom = tl.minimum(top + run, height)
        slopes = ()
        for _ in tl.static_range(K):
            slopes = slopes + (zero,)
        for row in range(top - K // 2, bottom + K // 2, K):
            near = _rows(x + image * xb, row, columns, spots, xh, xw, xc, height, width, channels, K)
            ahead = ()
            for i in tl.static_range(K):
                next_row = row + i + K // 2
                ahead = ahead + (
                    _row(grad + image * gb, next_row, columns, spots, gh, gw, gc, top, bottom, width, channels).to(ACC),
                )
            for i in tl.static_range(K):
                total += ahead[i]
                moved, added = (), ()
                for j in tl.static_range(1, K):
                    moved = moved + (slopes[j],)
                slopes = moved + (ahead[i],)  # rows from K // 2 above this one to K // 2 below
                for entry in tl.static_range(K * K):
                    product = near[i * K + entry % K].to(ACC) * slopes[K - 1 - entry // K]
                    added = added + (sums[entry] + product,)
                sums = added
    out += split.to(tl.int64) * (K * K + 1) * channels + spots
    for entry in tl.static_range(K * K):
        tl.store(out + entry * channels, tl.sum(sums[entry], 0), mask=spots < channels)
    tl.store(out + K * K * channels, tl.sum(total, 0), mask=spots < channels)


def config(way: str, k: int, dtype: torch.dtype, device: torch.device) -> dict:
    """Sizes and launch options; a thread has few channels, as it holds all of their weights, or sums, at once."""
    sizes = dict(CELLS=CELLS, RUN=RUN, num_warps=4 if k == 3 else 8, PROGRAMS=4 if k == 3 else 2)
    return chosen(f"depthwise {way} {k}", sizes, dtype, device)


def _sizes(way: str, x: Tensor, weight: Tensor) -> tuple[dict, tuple[int, int, int, int], int]:
    """A launch's constants; runs of rows of an image, parts across it, blocks of channels, rows of a run; programs of a
    multiprocessor."""
    (_, height, width, channels), k = x.shape, weight.shape[-1]
    sizes = config(way, k, x.dtype, x.device)
    c = 64 if channels % 64 == 0 or channels > 256 else 32
    columns, runs, programs = sizes.pop("CELLS") // c, triton.cdiv(height, sizes.pop("RUN")), sizes.pop("PROGRAMS")
    sizes.update(K=k, COLUMNS=columns, C=c, **sum_options(x.dtype))
    return sizes, (runs, triton.cdiv(width, columns), triton.cdiv(channels, c), triton.cdiv(height, runs)), programs


def launch_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool, turned: bool = False, before: Tensor | None = None
) -> Tensor:
    """The convolution, (B, H, W, C), in the type of x; with the kernel turned, its transpose, times GELU's slope at the
    map ``before``."""
    out, bias = x.new_empty(x.shape), None if bias is None else bias.contiguous()
    sizes, (runs, across, blocks, run), _ = _sizes("forward", x, weight)
    with on_device(x):
        depthwise_kernel[(x.shape[0] * runs * across * blocks,)](
            x, weight.flatten(1).t().contiguous(), bias, before, out, *x.stride(), *x.shape[1:],
            runs, across, blocks, run, TURNED=turned, RESIDUAL=residual, **sizes,
        )  # fmt: skip
    return out


def launch_weight(x: Tensor, grad: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the weight (C, 1, K, K) and the bias (C,), in its type."""
    sizes, (runs, across, blocks, run), programs = _sizes("backward", x, weight)
    k, parts = weight.shape[-1], x.shape[0] * runs * across
    share, splits = cut(parts, 1, blocks, x.device, programs)
    sums = x.new_empty(splits, k * k + 1, x.shape[-1], dtype=sum_type(x.dtype))
    with on_device(x):
        depthwise_weight_kernel[(splits * blocks,)](
            x, grad, sums, *x.stride(), *grad.stride(), *x.shape[1:], runs, across, blocks, run, parts, share, **sizes
        )  # fmt: skip
    entries, total = sums[:, :-1].sum(0), sums[:, -1].sum(0)
    return entries.t().contiguous().view(weight.shape).to(weight.dtype), total.to(weight.dtype)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool, gelu: bool) -> tuple[Tensor, Tensor]:
    """y in the type of x, and GELU of x where it is taken, which the weight's gradient needs, else nothing."""
    value = F.gelu(x.contiguous()) if gelu else x.new_empty(0)
    return launch_convolution(value if gelu else x, weight, bias, residual), value


def backward(
    grad: Tensor, x: Tensor, value: Tensor, weight: Tensor, residual: bool, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    before = x.contiguous() if gelu else None
    dx = launch_convolution(grad, weight, None, residual, turned=True, before=before)
    return dx, *launch_weight(value if gelu else x, grad, weight)


depthwise_forward = torch.library.custom_op("visionkit_kernels::depthwise", forward, mutates_args=())
depthwise_backward = torch.library.custom_op("visionkit_kernels::depthwise_backward", backward, mutates_args=())


@depthwise_forward.register_fake
def _(x, weight, bias, residual, gelu):  # noqa: ANN202
    return x.new_empty(x.shape), x.new_empty(x.shape if gelu else 0)


@depthwise_backward.register_fake
def _(grad, x, value, weight, residual, gelu):  # noqa: ANN202
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _setup(ctx, inputs, output) -> None:
    x, weight, bias, *ctx.options = inputs
    ctx.biased = bias is not None
    ctx.save_for_backward(x, output[1], weight)


def _backward(ctx, grad, *_) -> tuple:
    dx, dweight, dbias = direct(depthwise_backward, backward)(grad, *ctx.saved_tensors, *ctx.options)
    return dx, dweight, dbias if ctx.biased else None, None, None


depthwise_forward.register_autograd(_backward, setup_context=_setup)
_run = differentiable(depthwise_forward, forward, _setup, _backward)


def refuses(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    """Why the kernels do not take these tensors, or None."""
    if x.dim() != 4 or weight.shape != (x.shape[-1], 1, *weight.shape[-2:]) or weight.shape[-1] != weight.shape[-2]:
        return "expected a map (B, H, W, C) and a weight (C, 1, K, K)"
    if weight.shape[-1] not in SIZES:
        return f"kernels of {' or '.join(str(size) for size in SIZES)} cells a side alone"
    if bias is not None and bias.shape != weight.shape[:1]:
        return "expected a bias (C,)"
    if any(each.device != x.device for each in (weight, bias) if each is not None):
        return "tensors must lie on one device"
    return "a tensor is empty" if x.numel() == 0 else None


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: bool = False, gelu: bool = False
) -> Tensor:
    """Depthwise convolution with zeros beyond the edges; with ``residual`` the map is added, with ``gelu`` the map is
    GELU of x.

    Args:
        x: (B, H, W, C), any strides.
        weight: (C, 1, K, K), K 3 or 5, in whatever type: products and sums are in float32, or in float64 of such maps.
        bias: (C,) or None.

    Returns:
        (B, H, W, C), in the type of ``x``. It has gradients for all tensors.
    """
    return _run(x, weight, bias, residual, gelu)
