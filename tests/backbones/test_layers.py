import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from visionkit.backbones.layers import HAS_ONEDNN, ConvNorm, linear, suits_onednn


@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
@pytest.mark.parametrize("gamma", [False, True])
def test_linear_is_the_formula_with_and_without_gradients(gelu, gamma):
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 40), torch.randn(2, 5, 7, 24)
    factor = torch.randn(40) if gamma else None
    exact = x.double() @ layer.weight.double().T + layer.bias.double()
    exact = exact * factor.double() if gamma else exact
    exact = F.gelu(exact, approximate=gelu) if gelu else exact
    torch.testing.assert_close(linear(layer, x, factor, gelu).double(), exact, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert suits_onednn(layer, x) == HAS_ONEDNN
        torch.testing.assert_close(linear(layer, x, factor, gelu).double(), exact, atol=1e-5, rtol=1e-5)
        narrow, strided = linear(layer.bfloat16(), x.bfloat16(), None, gelu), x.transpose(1, 2)
        assert narrow.dtype == torch.bfloat16
        torch.testing.assert_close(
            linear(layer.float(), strided, None, gelu), linear(layer, strided.contiguous(), None, gelu)
        )


def test_linear_does_not_escape_hooks_counters_or_autocast():
    layer, x, seen = nn.Linear(24, 40), torch.randn(3, 24), []
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            linear(layer, x, gelu="none")
        assert counter.get_total_flops() == 2 * 3 * 24 * 40
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(layer, x).dtype == torch.bfloat16
        layer.register_forward_hook(lambda *_: seen.append(1))
        linear(layer, x)
    assert seen == [1]


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
