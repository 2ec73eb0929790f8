import pytest
import torch
from kernels.compare import in_form, inputs
from torch.utils._python_dispatch import TorchDispatchMode

from visionkit.ops.attention import attend
from visionkit.ops.depthwise import depthwise_conv
from visionkit.ops.gaussian import gaussian_attention
from visionkit.ops.mala import mala_attention
from visionkit.ops.nala import nala_attention
from visionkit.ops.norm import layer_norm
from visionkit.ops.rotary import rotary_2d

HEADS = (1, 1, 5, 8)
OPERATIONS = {
    "linear_attention": (mala_attention, *[HEADS] * 3),
    "nala_attention": (nala_attention, *[HEADS] * 3),
    "sigmoid_attention": (lambda *x: attend("sigmoid", *x), *[HEADS] * 3),
    "gaussian": (
        lambda l, q, v: gaussian_attention(q, None, v, landmarks=l, inverse="solve"),
        (1, 1, 2, 8),
        *[HEADS] * 2,
    ),
    "depthwise": (depthwise_conv, (1, 2, 3, 4), (4, 1, 3, 3)),
    "norm": (lambda x, w: layer_norm(x, w.flatten(), w.flatten(), 1e-6), HEADS, (1, 1, 1, 8)),
    "rotary": (lambda x: rotary_2d(x, *torch.rand(2, 5, 8, dtype=x.dtype, device=x.device)), HEADS),
}


def operation(name):
    run, *shapes = OPERATIONS[name]
    return in_form("triton", run), inputs(*shapes, dtype=torch.float32)


class Seen(TorchDispatchMode):
    """Names of the kernels' operators."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == "visionkit_kernels":
            self.names.add(operator._opname)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OPERATIONS)
def test_who_looks_on_sees_operators(name):
    run, tensors = operation(name)
    with Seen() as seen:
        torch.autograd.grad(run(*tensors).sum(), tensors)
    backward = name if name == "rotary" else f"{name}_backward"
    assert {name, backward} <= seen.names


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_second_derivative_is_refused(name):
    run, tensors = operation(name)
    grads = torch.autograd.grad(run(*tensors).square().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="twice|does not require grad|once_differentiable"):
        grads[0].sum().backward()
