"""The comparisons on a device: real sizes, fresh random inputs, and PyTorch's own checks of operators."""

import pytest
import torch
from kernels.compare import assert_same, inputs
from visionkit_kernels import gaussian, linear, sigmoid

from visionkit.ops import dispatch
from visionkit.ops.attention import attend
from visionkit.ops.gaussian import gaussian_attention
from visionkit.ops.mala import mala_attention
from visionkit.ops.rotary import rotary_table_2d

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TYPES = [torch.float32, torch.float16, torch.bfloat16]
HOPPER = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0), reason="needs compute capability 9.0"
)
WIDE = [pytest.param(torch.bfloat16, 128, marks=HOPPER)]


def in_form(form, function, **options):
    def run(*tensors):
        with dispatch.use_kernels(form):
            return function(*tensors, **options)

    return run


def both(function, tensors, **options):
    assert_same(in_form("triton", function, **options), in_form("torch", function, **options), tensors)


@pytest.fixture
def seed():
    """Another one every time; printed, so that a failure can be repeated."""
    number = torch.seed() % 2**31
    print(f"seed {number}")
    return number


@pytest.mark.parametrize("dtype, dim", [(dtype, dim) for dtype in TYPES for dim in (16, 48, 64)] + WIDE)
@pytest.mark.parametrize("order", ["heads", "tokens", "channels"])
def test_mala(dtype, order, dim, seed):
    tensors = inputs(*[(2, 3, 56 * 56, dim)] * 3, dtype=dtype, order=order, seed=seed)
    both(mala_attention, tensors, rotary=rotary_table_2d(56, 56, dim, dtype=torch.float64, device="cuda"))


def gated_mala(q, k, v, local, gate, **options):
    return mala_attention(q, k, v, local=local, gate=gate, **options)


@pytest.mark.parametrize("dtype, dim", [(dtype, dim) for dtype in TYPES for dim in (16, 48, 64)] + WIDE)
@pytest.mark.parametrize("order", ["heads", "tokens", "channels"])
def test_mala_with_a_local_branch_and_a_gate(dtype, order, dim, seed):
    tensors = inputs(*[(2, 3, 56 * 56, dim)] * 5, dtype=dtype, order=order, seed=seed)
    both(gated_mala, tensors, rotary=rotary_table_2d(56, 56, dim, dtype=torch.float64, device="cuda"))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name, dim", [(name, dim) for name in ("linear", "norm", "sigmoid") for dim in (24, 64)])
def test_attention(name, dtype, dim, seed):
    tensors = inputs(*[(2, 3, 1000, dim)] * 3, dtype=dtype, order="tokens", seed=seed)
    both(lambda *x: attend(name, *x), tensors)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("inverse", ["solve", "newton"])
def test_gaussian(dtype, inverse, seed):
    landmarks, q, v = inputs((2, 3, 49, 32), (2, 3, 3136, 32), (2, 3, 3136, 32), dtype=dtype, seed=seed)
    run = lambda landmarks, q, v: gaussian_attention(q, None, v, landmarks=landmarks, inverse=inverse)
    both(run, [landmarks, q, v])


def test_one_head_of_many_tokens_repeats_bit_for_bit(seed):
    tensors = inputs(*[(1, 1, 67_000, 64)] * 3, dtype=torch.bfloat16, seed=seed)
    first, second = (in_form("triton", mala_attention)(*tensors) for _ in range(2))
    assert torch.equal(first, second)


def by_name(name):
    """An attention, and how many tensors it takes."""
    return (gated_mala, 5) if name == "mala, gated" else (lambda *x: attend(name, *x), 3)


@pytest.mark.parametrize("name", ["linear", "mala, gated", "sigmoid"])
def test_offsets_beyond_32_bits(name):
    (attention, count), rows, dim = by_name(name), 130, 16
    step = 2**31 // (rows - 2)
    memory = torch.zeros(step * rows, dtype=torch.bfloat16, device="cuda")
    views = [memory[i * dim :].as_strided((1, 1, rows, dim), (0, 0, step, 1)) for i in range(count)]
    values = [torch.randn(1, 1, rows, dim, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
    for view, value in zip(views, values):
        view.copy_(value)
    run = in_form("triton", attention)
    assert torch.equal(run(*views), run(*values))


@pytest.mark.parametrize("name", ["mala", "mala, gated", "linear", "sigmoid"])
def test_gradcheck(name, seed):
    attention, count = by_name(name)
    tensors = inputs(*[(1, 2, 9, 16)] * count, dtype=torch.float64, seed=seed)
    assert torch.autograd.gradcheck(in_form("triton", attention), tensors)


def test_opcheck():
    q, k, v = inputs(*[(1, 2, 70, 32)] * 3, dtype=torch.float32)
    (landmarks,) = inputs((1, 2, 49, 32), dtype=torch.float32)
    for gating in ((None, None), (k, v)):
        torch.library.opcheck(linear.linear_forward, (q, k, v, None, *gating, "elu", "mala", False, 0.25, 1e-6))
    torch.library.opcheck(sigmoid.sigmoid_forward, (q, k, v, False))
    torch.library.opcheck(gaussian.project_forward, (landmarks, q, v, 0.5))
    torch.library.opcheck(gaussian.apply_forward, (landmarks, q, landmarks, 0.5))


@pytest.mark.parametrize("name", ["mala", "mala, gated", "linear", "sigmoid", "gaussian"])
def test_under_compile_autocast_and_checkpointing(name, seed):
    run, count = by_name(name)
    tensors = inputs(*[(1, 2, 196, 32)] * count, dtype=torch.bfloat16, seed=seed)
    expected = run(*tensors)
    torch.testing.assert_close(torch.compile(run, fullgraph=True)(*tensors), expected)
    with torch.autocast("cuda", torch.bfloat16):
        assert run(*tensors).isfinite().all()
    grads = torch.autograd.grad(run(*tensors).sum(), tensors)
    out = torch.utils.checkpoint.checkpoint(run, *tensors, use_reentrant=False)
    for actual, expected in zip(torch.autograd.grad(out.sum(), tensors), grads):
        torch.testing.assert_close(actual, expected)
