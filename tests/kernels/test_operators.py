import pytest
import torch
from kernels.operators import OPERATORS, opcheck


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_registered_as_torch_expects(name):
    opcheck(name)


def test_every_operator_is_checked():
    """Those of the backward passes are checked with the forward ones, which call them."""
    checked = {operator()[0]._qualname for operator in OPERATORS.values()}
    namespace = torch.ops.visionkit_kernels
    assert checked == {f"visionkit_kernels::{name}" for name in namespace if "backward" not in name}
