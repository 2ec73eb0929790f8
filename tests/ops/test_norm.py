import torch

from visionkit.ops.norm import layer_norm


def test_equals_explicit():
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape, 6, dtype=torch.float64) for shape in ((2, 3, 4), (), ()))
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-2).sqrt() * weight + bias
    torch.testing.assert_close(layer_norm(x, weight, bias, 1e-2), expected)
