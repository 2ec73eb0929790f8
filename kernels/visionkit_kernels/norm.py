# ruff: noqa: ANN001, ANN201  (kernels take what lies on the device, and return nothing)
"""Layer norm of the last axis, whose map and weights may be of different types.

    y = z w + b,   z = (x - mean) r,   r = (variance + eps)^-1/2

With g = dy w, dx = r (g - mean(g) - z mean(g z)), dw = sum_n dy z and db = sum_n dy. Mean and r are taken again from x,
which the backward pass reads anyway: nothing is kept but x.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from visionkit_kernels._common import cut, load_tile, on_device, padded, store_tile, sum_options, sum_type
from visionkit_kernels._direct import differentiable, direct

WIDEST = 4096
ENTRIES = 2048  # of a tile


@triton.jit
def _normal(x, inside, dim, eps):
    """z and r (rows, 1) of a tile."""
    x = tl.where(inside, x - (tl.sum(x, 1) / dim)[:, None], 0.0)
    r = (1 / tl.sqrt(tl.sum(x * x, 1) / dim + eps))[:, None]
    return x * r, r


@triton.jit
def norm_kernel(
    x, weight, bias, out, tokens, dim, eps, ROWS: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """y of one tile of tokens."""
    rows, columns = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, D)
    token = load_tile(x, rows, columns, dim, 1, tokens, dim).to(ACC)
    w = tl.load(weight + columns, mask=columns < dim, other=0.0).to(ACC)
    b = tl.load(bias + columns, mask=columns < dim, other=0.0).to(ACC)
    z, _ = _normal(token, (columns < dim)[None, :], dim, eps)
    store_tile(out, z * w[None, :] + b[None, :], rows, columns, dim, 1, tokens, dim)


@triton.jit
def norm_backward_kernel(
    x, weight, grad, dx, sums, tokens, dim, tiles, eps, ROWS: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """dx, and the sums for dw and db, (2, dim), of one run of tokens."""
    program, columns = tl.program_id(0), tl.arange(0, D)
    w = tl.load(weight + columns, mask=columns < dim, other=0.0).to(ACC)
    dw, db = tl.zeros([ROWS, D], ACC), tl.zeros([ROWS, D], ACC)
    for tile in range(program * tiles, tl.minimum((program + 1) * tiles, tl.cdiv(tokens, ROWS))):
        rows = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        token = load_tile(x, rows, columns, dim, 1, tokens, dim).to(ACC)
        slope = load_tile(grad, rows, columns, dim, 1, tokens, dim).to(ACC)
        z, r = _normal(token, (columns < dim)[None, :], dim, eps)
        dw += tl.where((rows < tokens)[:, None], slope * z, 0.0)  # eps may be 0, and r of no token then infinite
        db += slope
        g = slope * w[None, :]
        dtoken = r * (g - (tl.sum(g, 1) / dim)[:, None] - z * (tl.sum(g * z, 1) / dim)[:, None])
        store_tile(dx, dtoken, rows, columns, dim, 1, tokens, dim)
    sums += program.to(tl.int64) * 2 * dim + columns
    tl.store(sums, tl.sum(dw, 0), mask=columns < dim)
    tl.store(sums + dim, tl.sum(db, 0), mask=columns < dim)


def _sizes(x: Tensor) -> tuple[dict, int]:
    """A launch's constants, and tokens."""
    width = padded(x.shape[-1])
    sizes = dict(ROWS=max(1, ENTRIES // width), D=width, num_warps=max(4, width // 512), **sum_options(x.dtype))
    return sizes, x.numel() // x.shape[-1]


def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """y in that type."""
    x, (sizes, tokens) = x.contiguous(), _sizes(x)
    out = x.new_empty(x.shape, dtype=dtype)
    with on_device(x):
        norm_kernel[(triton.cdiv(tokens, sizes["ROWS"]),)](
            x, weight.contiguous(), bias.contiguous(), out, tokens, x.shape[-1], eps, **sizes
        )
    return out


def backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    x, grad, (sizes, tokens) = x.contiguous(), grad.contiguous(), _sizes(x)
    tiles, splits = cut(tokens, sizes["ROWS"], 1, x.device)
    dx, sums = torch.empty_like(x), x.new_empty(splits, 2, x.shape[-1], dtype=sum_type(x.dtype))
    with on_device(x):
        norm_backward_kernel[(splits,)](
            x, weight.contiguous(), grad, dx, sums, tokens, x.shape[-1], tiles, eps, **sizes
        )
    return dx, *(sums[:, i].sum(0).to(weight.dtype) for i in range(2))


norm_forward = torch.library.custom_op("visionkit_kernels::norm", forward, mutates_args=())
norm_backward = torch.library.custom_op("visionkit_kernels::norm_backward", backward, mutates_args=())


@norm_forward.register_fake
def _(x, weight, bias, eps, dtype):  # noqa: ANN202
    return x.new_empty(x.shape, dtype=dtype)


@norm_backward.register_fake
def _(grad, x, weight, eps):  # noqa: ANN202
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _setup(ctx, inputs, output) -> None:
    x, weight, _, ctx.eps, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad) -> tuple:
    return *direct(norm_backward, backward)(grad, *ctx.saved_tensors, ctx.eps), None, None


norm_forward.register_autograd(_backward, setup_context=_setup)
_run = differentiable(norm_forward, forward, _setup, _backward)


def refuses(x: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    """Why the kernels do not take these tensors, or None."""
    if not weight.shape == bias.shape == x.shape[-1:]:
        return "weight and bias must be of as many channels as the map"
    if not x.device == weight.device == bias.device:
        return "tensors must lie on one device"
    if x.shape[-1] > WIDEST:
        return f"at most {WIDEST} channels"
    return "a tensor is empty" if x.numel() == 0 else None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Layer norm of the last axis, in float32, or in float64 of such maps.

    Args:
        x: (..., C), C at most 4096.
        weight, bias: (C,), in whatever type.
        eps: added to the variance.
        dtype: that of the result.

    Returns:
        (..., C). It has gradients for all tensors.
    """
    return _run(x, weight, bias, eps, dtype)
