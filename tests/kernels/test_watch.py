"""The watch itself: it sees races that the interpreter's results do not show."""

import pytest
import torch
import triton
import triton.language as tl
from kernels.compare import DEVICE

pytestmark = pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter is watched")


@triton.jit
def copies(x, out, count, shift, step, SIZE: tl.constexpr):
    """out[place] = x[place + shift], each program's places ``step`` behind those of the one before."""
    places = tl.program_id(0) * step + tl.arange(0, SIZE)
    tl.store(out + places, tl.load(x + places + shift, mask=places < count), mask=places < count)


@triton.jit
def sums(x, out, ATOMIC: tl.constexpr, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)
    value = tl.load(x + tl.program_id(0) * SIZE + places)
    tl.atomic_add(out + places, value)
    if not ATOMIC:
        tl.store(out + places, value)


def test_what_programs_may_do():
    x, out = torch.arange(20.0), torch.zeros(20)
    copies[(3,)](x, out, 20, 0, 8, SIZE=8)
    copies[(1,)](x[3:], out[1:], 17, 0, 8, SIZE=32)
    total = torch.zeros(8)
    sums[(2,)](x, total, True, SIZE=8)
    assert torch.equal(total, x[:8] + x[8:16])


@pytest.mark.parametrize(
    "shift, step, to_itself, words",
    [
        (0, 7, False, "stores twice"),
        (8, 8, True, "reads what it writes"),
        (0, 8, True, "reads what it writes"),
        (1, 8, False, "1 places lie in none"),
    ],
)
def test_races(shift, step, to_itself, words):
    x = torch.arange(24.0)
    with pytest.raises(AssertionError, match=words):
        copies[(2 if to_itself else 3,)](x, x if to_itself else torch.zeros(24), 24, shift, step, SIZE=8)


@triton.jit
def beyond(x, out, count, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)
    tl.store(out + places, tl.load(x + places, mask=places < count))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_a_load_leaves_out_is_no_number(dtype):
    out = torch.zeros(8, dtype=dtype)
    beyond[(1,)](torch.ones(5, dtype=dtype), out, 5, SIZE=8)
    assert (out[:5] == 1).all() and out[5:].isnan().all()


def test_stores_and_atomic_sums_that_meet():
    with pytest.raises(AssertionError, match="adds to what it stores"):
        sums[(1,)](torch.zeros(8), torch.zeros(8), False, SIZE=8)
