import math

import pytest
import torch

from visionkit.backbones.layers import ConvNorm, gelu_tanh


@pytest.mark.parametrize("gradient", [False, True])
def test_gelu_against_its_formula(gradient):
    x = torch.linspace(-30, 30, 4001, dtype=torch.float64)
    kept = x.clone()
    expected = x / 2 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))
    with torch.set_grad_enabled(gradient):
        torch.testing.assert_close(gelu_tanh(x), expected, atol=1e-14, rtol=1e-12)
    assert torch.equal(x, kept)


def test_a_folded_norm_is_the_norm():
    torch.manual_seed(0)
    layer = ConvNorm(3, 8, 2, torch.relu).double()
    x = torch.randn(2, 9, 7, 3, dtype=torch.float64)
    for _ in range(3):
        layer(x)
    layer.eval()
    expected = layer.norm(layer.conv(x.permute(0, 3, 1, 2))).relu().permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), expected)
    assert layer.conv.weight.is_contiguous(memory_format=torch.channels_last)
