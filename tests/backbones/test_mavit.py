import pytest
import torch

from visionkit.backbones.hybrid import AttentionChoice
from visionkit.backbones.mavit import GatedAttention
from visionkit.ops import dispatch
from visionkit.ops.rotary import rotary_table_2d


def layer(name):
    torch.manual_seed(0)
    return GatedAttention(32, 2, AttentionChoice(name)).double()


def output_and_gradients(layer, form):
    """Of a map of 3 x 5 cells, under that choice of kernels."""
    x = torch.randn(2, 3, 5, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    gamma = torch.linspace(0.5, 1.5, 32, dtype=torch.float64)
    with dispatch.use_kernels(form):
        y = layer(x, rotary_table_2d(3, 5, 16, dtype=torch.float64), gamma)
    return y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])


@pytest.mark.parametrize("name, fuses", [("mala", True), ("linear", False), ("softmax", False)])
def test_with_kernels_as_without(name, fuses, monkeypatch):
    """An attention whose kernel takes branch and gate is given them, and the layer stays what it is."""
    pytest.importorskip("triton")
    given, same = [], layer(name)
    function = same.core.function
    monkeypatch.setattr(same.core, "function", lambda *x, **options: given.append(options) or function(*x, **options))
    plain, kernels = (output_and_gradients(same, form) for form in ("torch", "triton"))
    for expected, actual in zip(plain, kernels):
        torch.testing.assert_close(actual, expected)
    assert ["gate" in options for options in given] == [False, fuses]


def test_an_attention_with_a_gate_of_its_own_is_given_none():
    same = layer("lawcat")
    for expected, actual in zip(*(output_and_gradients(same, form) for form in ("torch", "triton"))):
        torch.testing.assert_close(actual, expected)
