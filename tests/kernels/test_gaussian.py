import pytest
import torch
from kernels.compare import TOLERANCE, assert_same, inputs

from visionkit.ops import dispatch
from visionkit.ops.gaussian import gaussian_attention, newton_inverse


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


def test_newton_in_one_launch():
    (x,) = inputs((2, 3, 7, 4), dtype=torch.float64)
    a = (-torch.cdist(x, x).square() / 2).exp().detach()
    with dispatch.use_kernels("triton"):
        inverse = newton_inverse(a)
    with dispatch.use_kernels("torch"):
        torch.testing.assert_close(inverse, newton_inverse(a), atol=1e-10, rtol=1e-10)
