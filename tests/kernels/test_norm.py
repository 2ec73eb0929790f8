import pytest
import torch
from kernels.compare import DEVICE, assert_same_forms, in_form, inputs

from visionkit.ops.norm import layer_norm


def norm(weight, bias, x):
    """The map last: results are of its type."""
    return layer_norm(x, weight.flatten(), bias.flatten(), 1e-6)


def tensors(dim, dtype, order="heads"):
    return inputs(*[(1, 1, 1, dim)] * 2, (2, 3, 70, dim), dtype=dtype, order=order)


@pytest.mark.parametrize(
    "dtype, dim, order",
    [(torch.float64, 64, "heads"), (torch.float32, 40, "tokens"), (torch.bfloat16, 9, "heads")],
)
def test_norm(dtype, dim, order):
    """420 tokens are several tiles, the last one not full, in two runs."""
    assert_same_forms(norm, tensors(dim, dtype, order))


def test_maps_far_from_zero():
    """Their variance is no difference of two large means of squares."""
    weight, bias, x = tensors(16, torch.float32)
    assert_same_forms(norm, [weight, bias, (x + 1e4).detach().requires_grad_()], tolerance=1e-3)


def test_without_an_eps():
    """Tokens beyond the last, which a tile that is not full holds as zeros, made the weight's gradient NaN."""
    run = lambda weight, bias, x: layer_norm(x, weight.flatten(), bias.flatten(), 0.0)
    assert_same_forms(run, inputs(*[(1, 1, 1, 8)] * 2, (1, 1, 5, 8), dtype=torch.float64))


def test_under_autocast_a_linear_layer_sees_the_numbers_of_pytorch():
    weight, bias, x = tensors(24, torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        out = in_form("triton", norm)(weight, bias, x.bfloat16())
    expected = norm(weight, bias, x.bfloat16().float()).bfloat16()
    torch.testing.assert_close(out, expected, rtol=2**-7, atol=0)  # the interpreter truncates to bfloat16
