"""Calls of kernels past ``torch.library``, whose wrappers take as long as the launches of several kernels.

They are needed where more than autograd looks on: ``torch.compile``, fake tensors, modes that see every operator.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode


def is_plain(x: Tensor) -> bool:
    """Whether nothing but autograd looks on."""
    if torch.compiler.is_compiling():
        return False
    return type(x) in (Tensor, torch.nn.Parameter) and _get_current_dispatch_mode() is None


def direct(operator: Callable, launch: Callable) -> Callable:
    """The operator, or the function that it was made of; their first argument is a tensor."""
    return lambda *inputs: (launch if is_plain(inputs[0]) else operator)(*inputs)


def differentiable(operator: Callable, launch: Callable, setup: Callable, backward: Callable) -> Callable:
    """The same with the gradient that ``setup`` and ``backward`` give the operator, too; of outputs the first."""

    def forward(ctx, *inputs: object) -> Tensor:  # noqa: ANN001
        output = launch(*inputs)
        setup(ctx, inputs, output)
        return _first(output)

    @once_differentiable
    def back(ctx, grad: Tensor) -> tuple:  # noqa: ANN001
        return backward(ctx, grad)

    methods = dict(forward=staticmethod(forward), backward=staticmethod(back))
    function = type(operator._name, (torch.autograd.Function,), methods)  # profilers show the name
    return lambda *inputs: function.apply(*inputs) if is_plain(inputs[0]) else _first(operator(*inputs))


def _first(output: Tensor | tuple) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
