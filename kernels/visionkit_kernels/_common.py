# ruff: noqa: ANN001, ANN201  (kernels take what lies on the device, and return nothing)
"""What all kernels share: types, tiles, features, rotation; and how the host cuts the work."""

import functools
import math
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRET = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")
NAN = tl.constexpr(tl.PropagateNan.ALL)
LOG2_E = tl.constexpr(1 / math.log(2))
HALF = (torch.bfloat16, torch.float16)
INTERPRETED_PROGRAMS = 2  # enough to see that runs of tokens are put together again
MULTIPROCESSORS = 132  # of the device, an H100, that tensors without data stand for: see visionkit_kernels.gate


@functools.cache
def programs(device: torch.device, each: int = 4) -> int:
    """How many programs fill the device, with so many on each multiprocessor."""
    if device.type == "meta":
        return each * MULTIPROCESSORS
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return each * torch.cuda.get_device_properties(device).multi_processor_count


def padded(size: int) -> int:
    """The power of two, at least 16, that a tile of so many channels takes."""
    return max(16, triton.next_power_of_2(size))


def cut(tokens: int, block: int, heads: int, device: torch.device, each: int = 4) -> tuple[int, int]:
    """Cuts a sequence into runs of tiles so that few heads still fill the device, see [programs].

    Returns:
        tiles a program, programs a head.
    """
    tiles = triton.cdiv(tokens, block)
    wanted = max(1, min(tiles, programs(device, each) // max(1, heads)))
    run = triton.cdiv(tiles, wanted)
    return run, triton.cdiv(tiles, run)


def dot_types(dtype: torch.dtype) -> dict:
    """How products are taken: the operands' type, the sums' type, the precision of float32 operands.

    float16 goes through TF32, which has its digits and the range of float32, so that features cannot overflow.
    Elsewhere, too, a product and its sum are one instruction, as Triton has it of itself until 3.9.
    """
    types = {
        torch.bfloat16: dict(DOT=tl.bfloat16, ACC=tl.float32, PRECISION="tf32"),
        torch.float16: dict(DOT=tl.float32, ACC=tl.float32, PRECISION="tf32"),
        torch.float32: dict(DOT=tl.float32, ACC=tl.float32, PRECISION="tf32x3"),
        torch.float64: dict(DOT=tl.float64, ACC=tl.float64, PRECISION="ieee"),
    }[dtype]
    return dict(types, enable_fp_fusion=True)


def sum_options(dtype: torch.dtype) -> dict:
    """Launch options of a kernel without matrix products: the type of its sums, see [dot_types]."""
    types = dot_types(dtype)
    return {name: types[name] for name in ("ACC", "enable_fp_fusion")}


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums are held."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tokens_first(like: Tensor, batch: int, heads: int, tokens: int, dim: int) -> Tensor:
    """An empty (B, heads, N, dim) whose memory runs (B, N, heads, dim), as the layer after attention wants it."""
    return like.new_empty(batch, tokens, heads, dim).transpose(1, 2)


def one_type(*tensors: Tensor) -> list[Tensor]:
    """All tensors in the type of the last."""
    return [x.to(tensors[-1].dtype) for x in tensors]


def shapes_differ(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why these are no queries, keys and values of one attention, or None: a kernel would read beyond their ends."""
    if not q.dim() == k.dim() == v.dim() == 4:
        return "tensors must be (B, heads, N, dim)"
    if q.shape[:2] != k.shape[:2] or q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1]:
        return "tensors must agree in batch, heads, keys and channels"
    return None if q.device == k.device == v.device else "tensors must lie on one device"


def pairs(rotary: tuple[Tensor, ...] | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Sin and cos (N, dim), alike for both channels of a pair, as one table (N, dim): cos, sin of every pair.

    Every head reads it, so it is half as large. Where it is given along as a third, it is not made again.

    Raises:
        ValueError: the tables are not of as many tokens and channels as q and k.
    """
    if rotary is None:
        return None
    sin, cos, *both = rotary
    table = both[0].contiguous() if both else torch.stack([cos[..., ::2], sin[..., ::2]], dim=-1).flatten(-2)
    if not table.shape == q.shape[-2:] == k.shape[-2:]:
        raise ValueError(f"rotary: expected tables {tuple(q.shape[-2:])} for q and k alike, got {tuple(table.shape)}")
    return table


# torch.compile need not look into what a device is
@torch.compiler.assume_constant_result
def little_shared_memory(device: torch.device) -> bool:
    """Whether a program has 99 KB of it, as on devices for the desk, instead of at least 163."""
    if device.type != "cuda":
        return False
    capability = torch.cuda.get_device_capability(device)
    return capability in ((8, 6), (8, 9)) or capability >= (12, 0)


@torch.compiler.assume_constant_result
def does_not_compile(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether Triton (3.8 too) fails on matrix products in a loop of this type: in half precision, on 10.x devices."""
    return dtype in HALF and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 10


def on_device(x: Tensor) -> torch.cuda.device:
    """Launches go to the tensor's device, not to the current one."""
    return torch.cuda.device(x.device.index if x.is_cuda else -1)


@triton.jit
def dot(a, b, acc, DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """acc + a b."""
    if INTERPRET:  # which cannot multiply bfloat16: round, then multiply wider
        return tl.dot(a.to(DOT).to(ACC), b.to(DOT).to(ACC), acc, input_precision="ieee", out_dtype=ACC)
    return tl.dot(a.to(DOT), b.to(DOT), acc, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def exchanged(x):
    """x itself, in the layout that its uses want. Threads exchange it here, once, and not what each use makes of it:
    the layout of a product does not go through a new axis."""
    return tl.reshape(x[None], x.shape)


@triton.jit
def load_tile(x, rows, columns, row_stride, column_stride, row_count, column_count):
    """A tile of a matrix, zero outside."""
    mask = (rows < row_count)[:, None] & (columns < column_count)[None, :]
    place = x + (rows[:, None].to(tl.int64) * row_stride + columns[None, :].to(tl.int64) * column_stride)
    return tl.load(place, mask=mask, other=0.0)


@triton.jit
def store_tile(x, value, rows, columns, row_stride, column_stride, row_count, column_count):
    """Writes what of a tile lies inside the matrix."""
    mask = (rows < row_count)[:, None] & (columns < column_count)[None, :]
    place = x + (rows[:, None].to(tl.int64) * row_stride + columns[None, :].to(tl.int64) * column_stride)
    tl.store(place, value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def exponential(x):
    """exp(x). float32 results below the smallest normal number are zero.

    Called impure, as Triton else computes features again for every layout in which a tile is needed: twice the
    instructions of a loop.
    """
    if INTERPRET or x.dtype == tl.float64:
        y = tl.exp(x)
    else:
        y = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * LOG2_E], dtype=tl.float32, is_pure=False, pack=1
        )
    return y


@triton.jit
def column_sums(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums over every 16th row of a tile, (16, COLUMNS): a thread's own rows, mostly, so that nothing is exchanged.

    Added up over tiles, and over their 16 rows at the end, they are the sums over all rows.
    """
    return tl.sum(tl.reshape(x, [ROWS // 16, 16, COLUMNS]), 0)


@triton.jit
def feature(x, MAP: tl.constexpr):
    """The feature map, elementwise; what is not a number stays so."""
    if MAP == "elu":  # exp(x) is above x + 1 but at 0
        y = tl.maximum(x + 1, exponential(tl.minimum(x, 0.0, NAN)), NAN)
    elif MAP == "relu":
        y = tl.maximum(x, 0.0, NAN)
    elif MAP == "exp":
        y = exponential(x)
    elif MAP == "relu2":
        y = tl.maximum(x, 0.0, NAN) * tl.maximum(x, 0.0, NAN)
    else:
        tl.static_assert(MAP == "none")
        y = x
    return y


@triton.jit
def feature_slope(x, y, MAP: tl.constexpr):
    """Derivative of [feature] at x, where it is y."""
    if MAP == "elu":
        slope = tl.minimum(y, 1.0, NAN)
    elif MAP == "relu":
        slope = tl.where(x > 0, 1.0, 0.0)
    elif MAP == "exp":
        slope = y
    elif MAP == "relu2":
        slope = 2 * tl.maximum(x, 0.0)
    else:
        tl.static_assert(MAP == "none")
        slope = tl.full(x.shape, 1.0, x.dtype)
    return slope


@triton.jit
def turn(x, table, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rotates pairs of neighbouring channels: (a, b) -> (a cos - b sin, b cos + a sin); a table as of [pairs]."""
    a, b = tl.split(tl.reshape(x, [ROWS, COLUMNS // 2, 2]))
    c, s = tl.split(tl.reshape(table, [ROWS, COLUMNS // 2, 2]))
    return tl.reshape(tl.join(a * c - b * s, b * c + a * s), [ROWS, COLUMNS])


@triton.jit
def turn_back(g, table, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The transpose of [turn], which takes gradients back."""
    a, b = tl.split(tl.reshape(g, [ROWS, COLUMNS // 2, 2]))
    c, s = tl.split(tl.reshape(table, [ROWS, COLUMNS // 2, 2]))
    return tl.reshape(tl.join(a * c + b * s, b * c - a * s), [ROWS, COLUMNS])
