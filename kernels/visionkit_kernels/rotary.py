# ruff: noqa: ANN001, ANN201  (kernels take what lies on the device, and return nothing)
"""Rotation of pairs of neighbouring channels, (a, b) -> (a cos - b sin, b cos + a sin), in one pass; back by minus the
angle."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from visionkit_kernels._common import (
    load_tile,
    on_device,
    padded,
    pairs,
    store_tile,
    sum_options,
    tokens_first,
    turn,
    turn_back,
)
from visionkit_kernels._direct import differentiable, direct

ENTRIES = 2048  # of a tile


@triton.jit
def rotary_kernel(
    x, table, out, xb, xh, xn, xd, ob, oh, on, od, heads, tokens, dim, tiles, BACK: tl.constexpr,
    ROWS: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One tile of tokens of one head."""
    program = tl.program_id(0).to(tl.int64)
    head, rows, columns = program // tiles, program % tiles * ROWS + tl.arange(0, ROWS), tl.arange(0, D)
    x += head // heads * xb + head % heads * xh
    out += head // heads * ob + head % heads * oh
    token = load_tile(x, rows, columns, xn, xd, tokens, dim).to(ACC)
    angle = load_tile(table, rows, columns, dim, 1, tokens, dim).to(ACC)
    turned = turn_back(token, angle, ROWS, D) if BACK else turn(token, angle, ROWS, D)
    store_tile(out, turned, rows, columns, on, od, tokens, dim)


def forward(x: Tensor, table: Tensor, back: bool) -> Tensor:
    """x, or a gradient, turned by the table's angles, or back by them."""
    (_, heads, tokens, dim), width = x.shape, padded(x.shape[-1])
    out, rows = tokens_first(x, *x.shape), ENTRIES // width
    tiles = triton.cdiv(tokens, rows)
    with on_device(x):
        rotary_kernel[(x.shape[0] * heads * tiles,)](
            x, table, out, *x.stride(), *out.stride(), heads, tokens, dim, tiles,
            BACK=back, ROWS=rows, D=width, num_warps=4, **sum_options(x.dtype),
        )  # fmt: skip
    return out


rotary_forward = torch.library.custom_op("visionkit_kernels::rotary", forward, mutates_args=())


@rotary_forward.register_fake
def _(x, table, back):  # noqa: ANN202
    return tokens_first(x, *x.shape)


def _setup(ctx, inputs, output) -> None:
    _, table, ctx.back = inputs
    ctx.save_for_backward(table)


def _backward(ctx, grad) -> tuple:
    return direct(rotary_forward, forward)(grad, *ctx.saved_tensors, not ctx.back), None, None


rotary_forward.register_autograd(_backward, setup_context=_setup)
_run = differentiable(rotary_forward, forward, _setup, _backward)


def refuses(x: Tensor, sin: Tensor, cos: Tensor) -> str | None:
    """Why the kernel does not take these tensors, or None."""
    if x.dim() != 4 or x.shape[-1] % 2 or not x.shape[-2:] == sin.shape == cos.shape:
        return "expected x (B, heads, N, dim), dim even, and tables (N, dim)"
    if not x.device == sin.device == cos.device:
        return "tensors must lie on one device"
    if sin.requires_grad or cos.requires_grad:
        return "it has no gradient for the tables"
    if x.shape[-1] > ENTRIES:
        return f"at most {ENTRIES} channels a head"
    return "a tensor is empty" if x.numel() == 0 else None


def rotary_2d(x: Tensor, sin: Tensor, cos: Tensor, both: Tensor | None = None) -> Tensor:
    """Turns every pair of neighbouring channels.

    Args:
        x: (B, heads, N, dim), any strides; dim even. It has a gradient.
        sin, cos: (N, dim), alike for both channels of a pair.
        both: cos and sin of every pair as one table (N, dim), if it is there already.

    Returns:
        (B, heads, N, dim), in the type of ``x``, its memory (B, N, heads, dim).
    """
    return _run(x, pairs((sin, cos) if both is None else (sin, cos, both), x, x), False)
