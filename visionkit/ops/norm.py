"""Layer norm."""

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.ops import dispatch
from visionkit.ops.precision import product_dtype, types_agree


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm of the last axis: (x - mean) / sqrt(variance + eps) * weight + bias.

    Under autocast on a GPU PyTorch's own form takes float32 and gives float32. The kernel computes in float32, too, but
    reads the map as it is and gives the type that autocast has products in: a linear layer sees the same numbers, and
    a fifth of the bytes pass through memory.

    Args:
        x: (..., C).
        weight, bias: (C,). Under autocast they may be of another type than ``x``.
        eps: added to the variance.

    Returns:
        (..., C).
    """
    # torch.compile makes one kernel of the norm and what is around it
    if types_agree(x, weight, bias) and not torch.compiler.is_compiling():
        if run := dispatch.kernel("layer_norm", x, weight, bias):
            return run(x, weight, bias, eps, product_dtype(x))
    return F.layer_norm(x, weight.shape, weight, bias, eps)
