"""Depthwise convolution of maps whose channels lie together."""

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.ops import dispatch
from visionkit.ops.precision import product_dtype, types_agree


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, residual: bool = False, gelu: bool = False
) -> Tensor:
    """Convolution of every channel with a kernel of its own, with zeros beyond the edges.

        y_hwc = b_c + sum_ij a_ijc x_(h+i)(w+j)c,   i, j = -k/2 .. k/2;   with a residual x + y

    Args:
        x: (B, H, W, C), any strides.
        weight: (C, 1, k, k), k odd. Under autocast it may be of another type than ``x``.
        bias: (C,) or None.
        residual: whether x is added.
        gelu: whether GELU is taken of x first, the exact one.

    Returns:
        (B, H, W, C).
    """
    weights = (weight,) if bias is None else (weight, bias)
    # if types do not agree PyTorch says so
    if types_agree(x, *weights) and (run := dispatch.kernel("depthwise_conv", x, *weights)):
        return run(x if residual else x.to(product_dtype(x)), weight, bias, residual, gelu)
    x = F.gelu(x) if gelu else x
    if residual and _is_exact(x, weight):
        return _convolve(x, weight + unit_kernel(weight), bias)
    y = _convolve(x, weight, bias)
    return x + y if residual else y


def unit_kernel(weight: Tensor) -> Tensor:
    """The k x k kernel that changes nothing."""
    size = weight.shape[-1]
    kernel = torch.zeros(size, size, dtype=weight.dtype, device=weight.device)
    kernel[size // 2, size // 2] = 1
    return kernel


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # "same": in a trace padding that is made of the weight's size would be no constant
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding="same", groups=weight.shape[0]).permute(0, 2, 3, 1)


def _is_exact(x: Tensor, weight: Tensor) -> bool:
    """Whether products are in full precision, as a GPU's TF32 is not: then the map is best added by the kernel's own
    centre, which saves a pass."""
    full = x.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
    return full and not torch.is_autocast_enabled("cpu")
