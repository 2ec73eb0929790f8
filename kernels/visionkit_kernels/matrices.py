# ruff: noqa: ANN001, ANN201  (kernels take what lies on the device, and return nothing)
"""Inverses of many small matrices in one launch, a program each: Newton's steps, and elimination."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from visionkit_kernels._common import dot, dot_types, load_tile, on_device, padded, store_tile

LARGEST = 64  # rows


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


@triton.jit
def inverse_kernel(a, out, count, M: tl.constexpr):
    """Eliminates one row and column after the other, in place (Gauss and Jordan), in float64.

    Of a positive definite matrix no pivot is zero, nor has it to be looked for.
    """
    place = tl.program_id(0).to(tl.int64) * count * count
    spots = tl.arange(0, M)
    x = load_tile(a + place, spots, spots, count, 1, count, count).to(tl.float64)
    for step in range(count):
        in_row, in_column = spots[:, None] == step, spots[None, :] == step
        row, column = tl.sum(tl.where(in_row, x, 0.0), 0), tl.sum(tl.where(in_column, x, 0.0), 1)
        pivot = tl.sum(tl.where(spots == step, row, 0.0), 0)
        row = tl.where(spots == step, 1.0, row) / pivot
        rest = tl.where(in_row | in_column, 0.0, x) - tl.where(in_row, 0.0, column[:, None] * row[None, :])
        x = tl.where(in_row, row[None, :], rest)
    store_tile(out + place, x, spots, spots, count, 1, count, count)


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


def launch_inverse(a: Tensor) -> Tensor:
    """a^-1 of positive definite matrices in one launch: (..., m, m), m at most 64, in float64. No gradient."""
    count, a = a.shape[-1], a.contiguous()
    out = torch.empty_like(a, dtype=torch.float64)
    with on_device(a):
        inverse_kernel[(a.numel() // count**2,)](
            a, out, count, M=padded(count), num_warps=8, enable_fp_fusion=True
        )  # fmt: skip
    return out


newton_forward = torch.library.custom_op("visionkit_kernels::newton_steps", launch_newton, mutates_args=())
inverse = torch.library.custom_op("visionkit_kernels::inverse", launch_inverse, mutates_args=())


@newton_forward.register_fake
def _(a, start, steps):  # noqa: ANN202
    return a.new_empty(a.shape)


@inverse.register_fake
def _(a):  # noqa: ANN202
    return a.new_empty(a.shape, dtype=torch.float64)


def refuses(a: Tensor, *_: Tensor) -> str | None:
    """Why the kernels do not take these matrices, or the matrices of these landmarks (..., m, dim); None if they do."""
    if a.numel() == 0:
        return "a tensor is empty"
    return f"matrices of at most {LARGEST} rows" if a.shape[-2] > LARGEST else None


def newton_steps(a: Tensor, start: Tensor, steps: int) -> Tensor:
    """V <- 2 V - V A V, so often, in one launch: (..., m, m), m at most 64, float32 or float64. No gradient."""
    return newton_forward(a, start.to(a.dtype), steps)
