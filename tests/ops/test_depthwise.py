import pytest
import torch
from torch.autograd import gradcheck

from visionkit.ops.depthwise import depthwise_conv


def tensors(size, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = (2, 4, 5, 3), (3, 1, size, size), (3,)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def explicit(x, weight, bias, residual):
    """Every output as the sum that the docstring writes."""
    reach, y = weight.shape[-1] // 2, bias.expand(x.shape).clone()
    for h, w in torch.cartesian_prod(torch.arange(x.shape[1]), torch.arange(x.shape[2])):
        for i, j in torch.cartesian_prod(*[torch.arange(-reach, reach + 1)] * 2):
            if 0 <= h + i < x.shape[1] and 0 <= w + j < x.shape[2]:
                y[:, h, w] += weight[:, 0, i + reach, j + reach] * x[:, h + i, w + j]
    return x + y if residual else y


@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("residual", [False, True])
def test_equals_explicit(size, residual):
    x, weight, bias = tensors(size)
    torch.testing.assert_close(depthwise_conv(x, weight, bias, residual=residual), explicit(x, weight, bias, residual))


def test_without_a_bias():
    x, weight, bias = tensors(3)
    torch.testing.assert_close(depthwise_conv(x, weight), depthwise_conv(x, weight, 0 * bias))


@pytest.mark.parametrize("residual", [False, True])
def test_gradients(residual):
    x, *weights = tensors(3)
    run = lambda *inputs: depthwise_conv(*inputs, residual=residual)
    assert gradcheck(run, (x, *weights), fast_mode=True)


def test_a_map_is_added_in_its_own_type_under_autocast():
    x, weight, bias = tensors(3, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise_conv(x, weight, bias, residual=True).dtype == torch.float32
        assert depthwise_conv(x, weight, bias).dtype == torch.bfloat16


def test_types_that_do_not_agree_are_told_by_pytorch():
    x, weight, bias = tensors(3)
    with pytest.raises(RuntimeError, match="type"):
        depthwise_conv(x.half(), weight, bias)
