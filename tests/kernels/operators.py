"""Every operator that has a gradient or a launch of its own, with arguments to check its registration with."""

import torch
from kernels.compare import DEVICE, inputs
from kernels.marching import march_arguments
from torch.utils._python_dispatch import TorchDispatchMode
from visionkit_kernels import depthwise, gaussian, linear, march, matrices, nala, norm, rotary, sigmoid


def _heads(*last):
    """Tensors (1, 2, 5, dim) for these dims."""
    return inputs(*[(1, 2, 5, dim) for dim in last], dtype=torch.float32, order="tokens")


def _landmarks(dim):
    return inputs((1, 2, 3, dim), dtype=torch.float32)


def _matrices():
    a = torch.eye(5, device=DEVICE).expand(2, 3, 5, 5) + 0.1
    return a, a / 10


def _map(*weights):
    """Weights of these shapes between a map (2, 3, 4, 8) and the other arguments."""
    return inputs((2, 3, 4, 8), dtype=torch.float32) + [
        torch.randn(shape, device=DEVICE, requires_grad=True) for shape in weights
    ]


OPERATORS = {
    "depthwise": lambda: (depthwise.depthwise_forward, (*_map((8, 1, 3, 3), (8,)), True, False)),
    "depthwise of GELU": lambda: (depthwise.depthwise_forward, (*_map((8, 1, 3, 3), (8,)), True, True)),
    "norm": lambda: (norm.norm_forward, (*_map((8,), (8,)), 1e-6, torch.bfloat16)),
    "mala": lambda: (linear.linear_forward, (*_heads(16, 16, 8), *[None] * 3, "elu", "mala", False, 0.25, 1e-6)),
    "mala, gated": lambda: (
        linear.linear_forward,
        (*_heads(16, 16, 8), None, *_heads(8, 8), "elu", "mala", False, 0.25, 1e-6),
    ),
    "nala": lambda: (nala.nala_forward, (*_heads(16, 16, 8), None, 3.0, 0.5, 1e-6, 1e-12)),
    "sigmoid": lambda: (sigmoid.sigmoid_forward, (*_heads(16, 16, 8), False)),
    "rotary": lambda: (rotary.rotary_forward, (*_heads(8), torch.randn(5, 8, device=DEVICE), False)),
    "gaussian": lambda: (gaussian.gaussian_forward, (*_landmarks(8), *_heads(8, 4), *_landmarks(3), 0.5)),
    "newton": lambda: (matrices.newton_forward, (*_matrices(), 3)),
    "inverse": lambda: (matrices.inverse, _matrices()[:1]),
    "march, vector_matrix": lambda: (march.march, march_arguments("vector_matrix")),
    "march, triplanes": lambda: (march.march, march_arguments("triplanes")),
    "march, gradients of rays": lambda: (march.march, march_arguments("vector_matrix", ray_gradients=True)),
}


def opcheck(name):
    """PyTorch's own checks: schema, registration of the gradient, fake tensors, and what ``torch.compile`` traces."""
    operator, arguments = OPERATORS[name]()
    torch.library.opcheck(operator, tuple(arguments))


class Recorder(TorchDispatchMode):
    """Writes down the calls of kernels' operators."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == "visionkit_kernels":
            self.calls.append((operator, args))
        return operator(*args, **kwargs or {})


def gradient_calls(name):
    """Operators of the backward pass, and what it calls them with."""
    operator, arguments = OPERATORS[name]()
    outputs = operator(*arguments)
    outputs = [x for x in (outputs if isinstance(outputs, tuple) else [outputs]) if x.requires_grad]
    with Recorder() as recorder:
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
    return recorder.calls
