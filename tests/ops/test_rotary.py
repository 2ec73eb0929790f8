import math

import pytest
import torch

from visionkit.errors import VisionKitError
from visionkit.ops.rotary import rotary_2d, rotary_pairs, rotary_table_2d


def test_table_against_the_formula():
    sin, cos = rotary_table_2d(3, 5, 8, dtype=torch.float64)
    for row in range(3):
        for column in range(5):
            for channel in range(8):
                place, pair = (row, channel // 2) if channel < 4 else (column, (channel - 4) // 2)
                angle = place * 10000 ** -[0.0, 1.0][pair]
                assert sin[row * 5 + column, channel].item() == pytest.approx(math.sin(angle), abs=1e-6)
                assert cos[row * 5 + column, channel].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_rotation_keeps_lengths_and_tells_only_differences():
    torch.manual_seed(0)
    sin, cos = rotary_table_2d(6, 6, 16, dtype=torch.float64)
    q, k = torch.randn(2, 16, dtype=torch.float64)
    rotated_q, rotated_k = (rotary_2d(x.expand(36, 16), sin, cos) for x in (q, k))
    torch.testing.assert_close(rotated_q.norm(dim=-1), q.norm().expand(36))
    products = (rotated_q @ rotated_k.T).view(6, 6, 6, 6)
    torch.testing.assert_close(products[1, 2, 3, 3], products[2, 3, 4, 4], atol=1e-5, rtol=0)
    torch.testing.assert_close(products[0, 0, 2, 5], products[3, 0, 5, 5], atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["contiguous", "odd", "transposed"])
def test_rotation_against_the_formula(layout):
    torch.manual_seed(0)
    x = torch.randn(2, 20, 3, 11, dtype=torch.float64)[..., :8].transpose(1, 2)  # odd strides
    x = dict(contiguous=x.contiguous(), odd=x, transposed=x.mT.contiguous().mT)[layout].requires_grad_()
    sin, cos = rotary_table_2d(4, 5, 8, dtype=torch.float64)
    pairs = zip(x.unbind(-1)[::2], x.unbind(-1)[1::2], sin[:, ::2].unbind(-1), cos[:, ::2].unbind(-1))
    expected = torch.stack([part for a, b, s, c in pairs for part in (a * c - b * s, b * c + a * s)], dim=-1)
    rotated = rotary_2d(x, sin, cos)
    torch.testing.assert_close(rotated, expected)
    torch.testing.assert_close(rotary_2d(x, sin, cos, rotary_pairs(sin, cos)), rotated, rtol=0, atol=0)
    weight = torch.randn_like(expected)
    ours, explicit = (torch.autograd.grad((each * weight).sum(), x)[0] for each in (rotated, expected))
    torch.testing.assert_close(ours, explicit)
    half = rotary_2d(x.detach().bfloat16(), sin.bfloat16(), cos.bfloat16())  # the other form
    torch.testing.assert_close(half.double(), expected, atol=0.05, rtol=0.05)


def test_dimension_must_divide():
    with pytest.raises(VisionKitError, match="dim=6"):
        rotary_table_2d(2, 2, 6)


def test_a_single_precision_table_leaves_half_precision_as_it_is():
    """The product with values of that type failed."""
    from visionkit.ops import mala_attention

    table = rotary_table_2d(3, 4, 8)
    q, k, v = (torch.randn(1, 2, 12, 8).bfloat16() for _ in range(3))
    assert mala_attention(q, k, v, rotary=table).dtype == torch.bfloat16


def test_a_double_table_holds_the_angles_of_the_single_one():
    """Published weights were trained on those."""
    single, double = (rotary_table_2d(1, 300, 64, dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert all(torch.equal(a.double(), b) for a, b in zip(single, double))
