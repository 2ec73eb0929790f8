import pytest
import torch
from kernels.compare import DEVICE, assert_same_forms, in_form, inputs

from visionkit.errors import VisionKitError
from visionkit.ops.rotary import rotary_2d, rotary_pairs, rotary_table_2d


@pytest.mark.parametrize(
    "dtype, dim, order",
    [(torch.float64, 12, "heads"), (torch.float32, 16, "channels"), (torch.bfloat16, 64, "tokens")],
)
@pytest.mark.parametrize("both", [False, True])
def test_rotary(dtype, dim, order, both):
    """130 tokens are several tiles, the last one not full."""
    table = rotary_table_2d(10, 13, dim, device=DEVICE, dtype=torch.float64)
    table = (*table, rotary_pairs(*table)) if both else table
    assert_same_forms(lambda x: rotary_2d(x, *table), inputs((2, 2, 130, dim), dtype=dtype, order=order))


def test_tables_that_learn_are_left_to_pytorch():
    (x,) = inputs((1, 1, 4, 8), dtype=torch.float32)
    sin, cos = (each.requires_grad_() for each in rotary_table_2d(2, 2, 8, device=DEVICE))
    with pytest.raises(VisionKitError, match="no gradient for the tables"):
        in_form("triton", rotary_2d)(x, sin, cos)
