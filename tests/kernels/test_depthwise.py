import pytest
import torch
from kernels.compare import DEVICE, assert_same_forms, in_form, inputs
from visionkit_kernels import depthwise

from visionkit.backbones.layers import ConvFFN, DepthwiseConv
from visionkit.errors import VisionKitError
from visionkit.ops.depthwise import depthwise_conv


def convolution(weight, bias, x, **options):
    """The map last: results are of its type."""
    return depthwise_conv(x, weight, bias.flatten(), **options)


def tensors(size, shape, dtype, order="heads"):
    weights = inputs((shape[-1], 1, size, size), (1, 1, 1, shape[-1]), dtype=dtype)
    return [*weights, *inputs(shape, dtype=dtype, order=order)]


@pytest.mark.parametrize(
    "dtype, size, shape, order, residual",
    [
        (torch.float64, 3, (1, 5, 17, 40), "heads", True),
        (torch.float16, 3, (1, 5, 5, 8), "tokens", True),
        (torch.float32, 5, (1, 3, 17, 8), "channels", True),
        (torch.bfloat16, 5, (1, 3, 5, 8), "heads", False),
    ],
)
def test_convolution(dtype, size, shape, order, residual, monkeypatch):
    """Two runs of rows, 17 columns two parts, 40 channels two blocks, none of them full."""
    monkeypatch.setattr(depthwise, "RUN", 3 if shape[1] == 5 else 2)
    assert_same_forms(convolution, tensors(size, shape, dtype, order), residual=residual)


@pytest.mark.parametrize(
    "dtype, size, shape, order, residual",
    [
        (torch.float64, 3, (2, 5, 17, 40), "heads", True),
        (torch.float32, 5, (1, 3, 17, 8), "channels", False),
        (torch.bfloat16, 3, (1, 5, 5, 8), "tokens", True),
    ],
)
def test_convolution_of_gelu(dtype, size, shape, order, residual, monkeypatch):
    monkeypatch.setattr(depthwise, "RUN", 3)
    assert_same_forms(convolution, tensors(size, shape, dtype, order), residual=residual, gelu=True)


def test_images_and_channels_that_fill_their_blocks():
    assert_same_forms(convolution, tensors(3, (2, 2, 3, 64), torch.float64), residual=True)


@pytest.mark.parametrize("shape", [(1, 1, 2, 3), (1, 1, 1, 1)])
def test_maps_smaller_than_the_kernel(shape):
    assert_same_forms(convolution, tensors(5, shape, torch.float64))


def test_without_a_bias():
    weight, _, x = tensors(3, (1, 3, 4, 8), torch.float64)
    assert_same_forms(lambda weight, x: depthwise_conv(x, weight), [weight, x])


def test_a_bias_that_is_every_second_entry():
    """The kernel took the one next in memory."""
    weight, both, x = inputs((8, 1, 3, 3), (1, 1, 8, 2), (1, 3, 4, 8), dtype=torch.float64)
    assert_same_forms(lambda weight, both, x: depthwise_conv(x, weight, both[0, 0, :, 0]), [weight, both, x])


@pytest.mark.parametrize("bias", [torch.zeros(7), torch.zeros(1, 8), torch.zeros(8, device="meta")])
def test_a_bias_beyond_whose_end_a_kernel_would_read_is_refused(bias):
    weight, _, x = tensors(3, (1, 3, 4, 8), torch.float32)
    with pytest.raises(VisionKitError, match=r"a bias \(C,\)|on one device"):
        in_form("triton", depthwise_conv)(x, weight, bias)


def test_a_bias_of_another_type_is_left_to_pytorch():
    weight, _, x = tensors(3, (1, 3, 4, 8), torch.float32)
    with pytest.raises(RuntimeError, match="type"):
        in_form("triton", depthwise_conv)(x, weight, torch.zeros(8, dtype=torch.float64, device=DEVICE))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_under_autocast_are_those_of_pytorch(dtype, residual):
    weight, bias, x = tensors(3, (1, 4, 5, 8), torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        out, expected = (
            in_form(form, convolution, residual=residual)(weight, bias, x.to(dtype)) for form in ("triton", "torch")
        )
    torch.testing.assert_close(out, expected, rtol=3e-2, atol=3e-2)


def test_layers_take_kernels_on_views_of_wider_maps():
    """As MAViT's values are; its feed-forward part adds what it convolves."""
    torch.manual_seed(0)
    branch, part = DepthwiseConv(8, 5).to(DEVICE, torch.float64), ConvFFN(8, 16).to(DEVICE, torch.float64)
    wide = inputs((1, 3, 4, 32), dtype=torch.float64)
    assert_same_forms(lambda x: part(branch(x.chunk(4, -1)[2])), wide)
