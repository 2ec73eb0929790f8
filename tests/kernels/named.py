"""Operations by name, as a function of so many tensors (B, heads, N, dim) that all want gradients."""

import numpy as np
import torch
from kernels.compare import DEVICE, in_form

from visionkit.ops.attention import attend
from visionkit.ops.depthwise import depthwise_conv
from visionkit.ops.gaussian import gaussian_attention
from visionkit.ops.mala import mala_attention
from visionkit.ops.rotary import rotary_2d, rotary_table_2d

FAR = ["linear", "mala, gated", "sigmoid", "nala", "gaussian, solved", "depthwise", "rotary"]


def gated_mala(q, k, v, local, gate, **options):
    return mala_attention(q, k, v, local=local, gate=gate, **options)


def with_landmarks(landmarks, q, v, inverse="solve"):
    return gaussian_attention(q, None, v, landmarks=landmarks, inverse=inverse)


def averaged(x):
    return depthwise_conv(x, torch.full((x.shape[-1], 1, 3, 3), 1 / 9, dtype=x.dtype, device=DEVICE))


def turned(x):
    return rotary_2d(x, *rotary_table_2d(1, *x.shape[-2:], device=DEVICE))


def by_name(name):
    """An operation, and how many tensors it takes."""
    others = {"mala, gated": (gated_mala, 5), "gaussian, solved": (with_landmarks, 3)}
    others |= {"depthwise": (averaged, 1), "rotary": (turned, 1)}
    return others.get(name) or (lambda *x: attend(name, *x), 3)


def assert_reaches_far(name, apart):
    """An operation makes the same of tensors whose rows, or whose batch, lie more than 2^31 elements apart.

    Nothing of the memory between them is touched, so that a CPU has room for it.
    """
    (operation, count), dim = by_name(name), 16
    shape, strides = dict(
        rows=((1, 1, 130, dim), (0, 0, 2**31 // 128, 1)), batch=((2, 1, 13, dim), (2**31 + 64, 0, count * dim, 1))
    )[apart]
    size = sum((side - 1) * stride for side, stride in zip(shape, strides)) + count * dim
    if DEVICE == "cuda":
        memory = torch.empty(size, dtype=torch.float16, device=DEVICE)
    else:
        memory = torch.from_numpy(np.empty(size, np.float16))
    far = [memory[i * dim :].as_strided(shape, strides) for i in range(count)]
    near = [torch.randn(shape, device=DEVICE, dtype=torch.float16).requires_grad_() for _ in far]
    for there, here in zip(far, near):
        there.copy_(here.detach())
    run, results = in_form("triton", operation), []
    for tensors in (near, [x.requires_grad_() for x in far]):
        out = run(*tensors)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), tensors)])
    for here, there in zip(*results):
        torch.testing.assert_close(there, here)
