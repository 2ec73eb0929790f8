import pytest
import torch
from kernels.operators import OPERATORS, gradient_calls, opcheck


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_registered_as_torch_expects(name):
    opcheck(name)


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_have_the_strides_that_compilers_are_told(name):
    """The check of the forward operators looks at the values of their gradients alone."""
    for operator, arguments in gradient_calls(name):
        torch.library.opcheck(operator, arguments, test_utils="test_faketensor")


def test_every_operator_is_checked():
    """Those of the backward passes are checked with the forward ones, which call them."""
    checked = {operator()[0]._qualname for operator in OPERATORS.values()}
    namespace = torch.ops.visionkit_kernels
    assert checked == {f"visionkit_kernels::{name}" for name in namespace if "backward" not in name}
