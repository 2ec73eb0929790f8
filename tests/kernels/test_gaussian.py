import weakref

import pytest
import torch
from kernels.compare import DEVICE, TOLERANCE, assert_near, assert_same, inputs
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from visionkit_kernels import gaussian

from visionkit.ops import dispatch
from visionkit.ops.gaussian import gaussian_attention, gaussian_kernel


def attention(form, **options):
    def run(landmarks, q, v):
        with dispatch.use_kernels(form):
            return gaussian_attention(q, None, v, landmarks=landmarks, **options)

    return run


@pytest.mark.parametrize(
    "dtype, order, inverse, symmetric",
    [
        (torch.float64, "tokens", "solve", False),
        (torch.float64, "heads", "newton", True),
        (torch.float32, "channels", "newton", False),
        (torch.bfloat16, "tokens", "solve", False),
    ],
)
def test_gaussian(dtype, order, inverse, symmetric):
    """130 tokens are five tiles in two runs; 5 landmarks, 12 and 20 channels do not fill theirs."""
    tensors = inputs((1, 1, 5, 12), (1, 1, 130, 12), (1, 1, 130, 20), dtype=dtype, order=order)
    options = dict(inverse=inverse, symmetric=symmetric)
    # The inverse multiplies rounding by up to 1 / 0.01; all that is rounded to bfloat16 here are inputs and outputs.
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, TOLERANCE[dtype])
    assert_same(attention("triton", **options), attention("torch", **options), tensors, tolerance=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_more_landmarks_than_a_tile(dtype):
    """150 make three parts of 50."""
    tensors = inputs((1, 1, 150, 12), (1, 1, 70, 12), (1, 1, 70, 20), dtype=dtype, order="tokens")
    run = lambda form: attention(form, inverse="solve")
    assert_same(run("triton"), run("torch"), tensors, tolerance=1e-9 if dtype == torch.float64 else TOLERANCE[dtype])


def test_own_landmarks_batches_and_heads():
    _, q, v = inputs((1, 1, 1, 1), (2, 2, 9, 8), (2, 2, 9, 8), dtype=torch.float64, order="tokens")
    run = lambda form: lambda q, v: attention(form)(None, q, v)
    assert_same(run("triton"), run("torch"), [q, v], tolerance=1e-9)


def test_wide_heads_read_their_core_again():
    """Backward of heads above 32, in float32 and wider."""
    tensors = inputs((1, 1, 5, 40), (1, 1, 70, 40), (1, 1, 70, 33), dtype=torch.float64, order="tokens")
    run = lambda form: attention(form, inverse="solve")
    assert_same(run("triton"), run("torch"), tensors, tolerance=1e-9)


def test_devices_of_little_shared_memory_take_wide_heads_in_half_precision(monkeypatch):
    monkeypatch.setattr(gaussian, "little_shared_memory", lambda device: True)
    tensors = inputs((1, 1, 70, 40), (1, 1, 33, 40), (1, 1, 33, 33), dtype=torch.bfloat16, order="tokens")
    run = lambda form: attention(form, inverse="solve")
    assert_same(run("triton"), run("torch"), tensors)
    assert "shared memory" in gaussian.refuses(*[x.float() for x in tensors])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_over_half_precision_have_the_digits_of_float32(dtype):
    (landmarks,) = inputs((1, 2, 9, 12), dtype=torch.float32)
    q, v = inputs(*[(1, 2, 40, 12)] * 2, dtype=dtype)
    kernel = gaussian_kernel(landmarks.double(), q.double() / 2)
    with torch.no_grad():
        assert_near(gaussian.launch_project(landmarks, q, v, 0.5), kernel @ v.double(), 1e-5, "product")


def test_gradient_of_close_landmarks():
    """Of SOFT++: entries of some 1e6 stand on both sides of the gradient of the small matrix."""
    landmarks, q, v = inputs((1, 1, 20, 4), (1, 1, 40, 4), (1, 1, 40, 8), dtype=torch.float32)
    landmarks = (0.05 * landmarks).detach().requires_grad_()
    run = lambda form: attention(form, inverse="solve", symmetric=True)
    assert_same(run("triton"), run("torch"), [landmarks, q, v], tolerance=5e-3)


def test_gradients_are_taken_without_automatic_casts():
    tensors = inputs((1, 1, 5, 12), (1, 1, 40, 12), (1, 1, 40, 12), dtype=torch.float32)
    out = attention("triton", inverse="solve")(*tensors)
    expected = torch.autograd.grad(out.sum(), tensors, retain_graph=True)
    with torch.autocast(DEVICE, torch.bfloat16):
        grads = torch.autograd.grad(out.sum(), tensors)
    for actual, wanted in zip(grads, expected):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("inverse", ["newton", "solve"])
def test_torch_compile_sees_one_graph_of_kernels_not_used_before(inverse, monkeypatch):
    monkeypatch.setattr(dispatch, "_loaded", {})
    tensors = inputs((1, 1, 5, 8), *[(1, 1, 9, 8)] * 2, dtype=torch.float32)
    run = attention("triton", inverse=inverse)
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*tensors), run(*tensors))


class Allocations(TorchDispatchMode):
    """Adds up the bytes of what operators return, while it lives."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            storage = x.untyped_storage() if isinstance(x, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.alive:
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def peak_bytes(form, training, inverse):
    """Beyond the inputs, of tensors without data: SOFT's largest stage, 64 images of 56 x 56 tokens."""
    with FakeTensorMode():
        new = lambda tokens: torch.empty(64, tokens, 2, 32, dtype=torch.bfloat16, device=DEVICE).transpose(1, 2)
        (landmarks, q, v), grad = (new(n).requires_grad_(training) for n in (49, 3136, 3136)), new(3136)
        with Allocations() as allocations:
            out = attention(form, inverse=inverse)(landmarks, q, v)
            if training:
                torch.autograd.grad(out, (landmarks, q, v), grad)
    return allocations.peak


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("inverse", ["newton", "solve"])
def test_peak_memory_is_a_fifth(inverse, training):
    kernel, plain = (peak_bytes(form, training, inverse) for form in ("triton", "torch"))
    print(f"{kernel / 2**20:.0f} and {plain / 2**20:.0f} MiB")
    assert 5 * kernel <= plain
