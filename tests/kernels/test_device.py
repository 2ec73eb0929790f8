"""The comparisons on a device: real sizes, fresh random inputs, and PyTorch's own checks of operators."""

import pytest
import torch
from kernels.compare import DEVICE, assert_same_forms, in_form, inputs
from kernels.marching import KINDS, assert_one_graph, assert_same_march, rays_as_leaves, scene
from kernels.named import FAR, assert_reaches_far, by_name, gated_mala, with_landmarks
from kernels.operators import OPERATORS, opcheck
from visionkit_kernels._common import little_shared_memory

from visionkit.ops import dispatch
from visionkit.ops.attention import attend
from visionkit.ops.depthwise import depthwise_conv
from visionkit.ops.mala import mala_attention
from visionkit.ops.nala import nala_attention
from visionkit.ops.norm import layer_norm
from visionkit.ops.rotary import rotary_2d, rotary_table_2d

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TYPES = [torch.float32, torch.float16, torch.bfloat16]
ROOM = pytest.mark.skipif(
    torch.cuda.is_available() and little_shared_memory(torch.device("cuda")), reason="needs 163 KB of shared memory"
)
WIDE = [pytest.param(dtype, dim, marks=ROOM) for dtype in TYPES for dim in (96, 128)]
SIDE = 56  # of an image in tokens
NVIST = dict(rays=9000, size=48, colours=24, width=64, frequencies=4, fog=True)
SAMPLES = 48


def table(dim):
    return rotary_table_2d(SIDE, SIDE, dim, device=DEVICE)


@pytest.fixture
def seed():
    """Another one every time; printed, so that a failure can be repeated."""
    number = torch.seed() % 2**31
    print(f"seed {number}")
    return number


@pytest.mark.parametrize("dtype, dim", [(dtype, dim) for dtype in TYPES for dim in (16, 48, 64)] + WIDE)
@pytest.mark.parametrize("order", ["heads", "tokens", "channels"])
def test_mala(dtype, order, dim, seed):
    tensors = inputs(*[(2, 3, SIDE * SIDE, dim)] * 3, dtype=dtype, order=order, seed=seed)
    assert_same_forms(mala_attention, tensors, rotary=table(dim))


@pytest.mark.parametrize("dtype, dim", [(dtype, dim) for dtype in TYPES for dim in (16, 48, 64)] + WIDE)
@pytest.mark.parametrize("order", ["heads", "tokens", "channels"])
def test_mala_with_a_local_branch_and_a_gate(dtype, order, dim, seed):
    tensors = inputs(*[(2, 3, SIDE * SIDE, dim)] * 5, dtype=dtype, order=order, seed=seed)
    assert_same_forms(gated_mala, tensors, rotary=table(dim))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name, dim", [(name, dim) for name in ("linear", "norm", "sigmoid") for dim in (24, 64)])
def test_attention(name, dtype, dim, seed):
    tensors = inputs(*[(2, 3, 1000, dim)] * 3, dtype=dtype, order="tokens", seed=seed)
    assert_same_forms(lambda *x: attend(name, *x), tensors)


@pytest.mark.parametrize("name", ["linear", "norm"])
@pytest.mark.parametrize("dtype, dim", WIDE)
def test_attention_of_wide_heads(name, dtype, dim, seed):
    tensors = inputs(*[(2, 3, 1000, dim)] * 3, dtype=dtype, order="tokens", seed=seed)
    assert_same_forms(lambda *x: attend(name, *x), tensors)


@pytest.mark.parametrize("dtype, dim", [(dtype, dim) for dtype in TYPES for dim in (16, 32, 64)])
@pytest.mark.parametrize("order", ["heads", "tokens", "channels"])
def test_nala(dtype, order, dim, seed):
    tensors = inputs(*[(2, 3, SIDE * SIDE, dim)] * 3, dtype=dtype, order=order, seed=seed)
    tolerance = 1e-4 if dtype == torch.float32 else None  # as in the interpreter
    assert_same_forms(nala_attention, tensors, tolerance=tolerance, rotary=table(dim))


@pytest.mark.parametrize(
    "dtype, dim",
    [*((dtype, 32) for dtype in TYPES), (torch.bfloat16, 64), pytest.param(torch.float32, 64, marks=ROOM)],
)
@pytest.mark.parametrize("inverse", ["solve", "newton"])
def test_gaussian(dtype, dim, inverse, seed):
    tensors = inputs((2, 3, 49, dim), *[(2, 3, SIDE * SIDE, dim)] * 2, dtype=dtype, seed=seed)
    assert_same_forms(with_landmarks, tensors, inverse=inverse)


def test_gaussian_with_more_landmarks_than_a_tile(seed):
    tensors = inputs((1, 2, 150, 32), *[(1, 2, SIDE * SIDE, 32)] * 2, dtype=torch.bfloat16, seed=seed)
    assert_same_forms(with_landmarks, tensors)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size, shape", [(3, (2, 56, 56, 224)), (3, (1, 7, 7, 512)), (5, (2, 56, 56, 64))])
@pytest.mark.parametrize("order", ["heads", "tokens", "channels"])
def test_depthwise(dtype, size, shape, order, seed):
    weights = inputs((shape[-1], 1, size, size), (1, 1, 1, shape[-1]), dtype=dtype, seed=seed)
    maps = inputs(shape, dtype=dtype, order=order, seed=seed + 1)
    run = lambda weight, bias, x: depthwise_conv(x, weight, bias.flatten(), residual=size == 3)
    assert_same_forms(run, weights + maps)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dim", [16, 48, 64])
def test_rotary(dtype, dim, seed):
    tensors = inputs((2, 3, SIDE * SIDE, dim), dtype=dtype, order="tokens", seed=seed)
    assert_same_forms(lambda x: rotary_2d(x, *table(dim)), tensors)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dim", [64, 320, 4096])
def test_norm(dtype, dim, seed):
    tensors = inputs(*[(1, 1, 1, dim)] * 2, (2, 8, 100, dim), dtype=dtype, seed=seed)
    assert_same_forms(lambda weight, bias, x: layer_norm(x, weight.flatten(), bias.flatten(), 1e-6), tensors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-4), (torch.bfloat16, None)])
def test_march(dtype, tolerance, kind, seed):
    leaves, view = scene(dtype, **NVIST, seed=seed)
    moved, behind = torch.tensor(seed, device=DEVICE), torch.tensor([0.2, 0.5, 1.0], device=DEVICE)
    options = dict(num_samples=SAMPLES, seed=moved, background=behind)
    assert_same_march(leaves, view, tolerance, kind=kind, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-4), (torch.bfloat16, None)])
def test_gradients_of_rays(dtype, tolerance, kind, seed):
    leaves, view = scene(dtype, **NVIST, seed=seed)
    *rays, near, far = rays_as_leaves(view)  # per ray: a sum over rays would hold all that rounding moves
    near = near.detach().expand(far.shape).clone().requires_grad_()
    options = dict(num_samples=SAMPLES, seed=torch.tensor(seed, device=DEVICE), ray_gradients=True)
    assert_same_march(leaves, [*rays, near, far], tolerance, kind=kind, **options)


def test_march_under_compile(seed):
    assert_one_graph(*scene(torch.float32, rays=100, seed=seed), "inductor")


def test_one_head_of_many_tokens_repeats_bit_for_bit(seed):
    tensors = inputs(*[(1, 1, 67_000, 64)] * 3, dtype=torch.bfloat16, seed=seed)
    first, second = (in_form("triton", mala_attention)(*tensors) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("apart", ["rows", "batch"])
def test_offsets_beyond_32_bits(name, apart):
    assert_reaches_far(name, apart)


@pytest.mark.parametrize(
    "name", ["mala", "mala, gated", "linear", "sigmoid", "nala", "gaussian, solved", "depthwise", "rotary"]
)
def test_gradcheck(name, seed):
    attention, count = by_name(name)
    tensors = inputs(*[(1, 2, 9, 16)] * count, dtype=torch.float64, seed=seed)
    assert torch.autograd.gradcheck(in_form("triton", attention), tensors)


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name):
    opcheck(name)


@pytest.mark.parametrize("name", ["mala", "mala, gated", "linear", "nala", "sigmoid", "gaussian", "depthwise"])
def test_under_compile_autocast_and_checkpointing(name, seed):
    run, count = by_name(name)
    tensors = inputs(*[(1, 2, 196, 32)] * count, dtype=torch.bfloat16, seed=seed)
    expected = run(*tensors)
    torch.testing.assert_close(torch.compile(run, fullgraph=True)(*tensors), expected)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert run(*tensors).isfinite().all()
    grads = torch.autograd.grad(run(*tensors).sum(), tensors)
    out = torch.utils.checkpoint.checkpoint(run, *tensors, use_reentrant=False)
    for actual, expected in zip(torch.autograd.grad(out.sum(), tensors), grads):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-2), (torch.bfloat16, 0.1)])
def test_a_model_trains_as_by_pytorch(dtype, tolerance, compiled, seed):
    """Compared with PyTorch in float32."""
    pytest.importorskip("mmengine")  # for the models alone: kernels can be tried on a machine without it
    from visionkit.backbones.mavit import mavit_tiny

    torch.manual_seed(seed)
    model = mavit_tiny(drop_path_rate=0.0).to(DEVICE)
    image, gradients = torch.randn(2, 3, 96, 64, device=DEVICE), {}
    for form in ("torch", "triton"):
        run = torch.compile(model, fullgraph=True) if compiled and form == "triton" else model
        half = dtype == torch.bfloat16 and form == "triton"
        with dispatch.use_kernels(form), torch.autocast(DEVICE, torch.bfloat16, enabled=half):
            loss = run(image).float().square().mean()
        found = torch.autograd.grad(loss, list(model.parameters()))
        gradients[form] = torch.cat([each.double().flatten() for each in found])
    assert (gradients["triton"] - gradients["torch"]).norm() <= tolerance * gradients["torch"].norm()
