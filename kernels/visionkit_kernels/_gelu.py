# ruff: noqa: ANN001, ANN201  (kernels take what lies on the device, and return nothing)
"""GELU, x times the share of a normal distribution below x, and its slope."""

import triton
import triton.language as tl


@triton.jit
def normal_cdf(x):
    """The share of a normal distribution below x.

    In float32 what lies beyond |x| is two to the power of a polynomial, off by 8e-7 at most: a third of what erf takes.
    """
    if x.dtype == tl.float64:
        share = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
    else:
        t = tl.abs(x)
        power = (((-0.00050025945 * t + 0.0072823774) * t - 0.052343239) * t - 0.45941408) * t - 1.151052
        beyond = tl.exp2(power * t - 1.0000019)
        share = tl.where(x < 0, beyond, 1 - beyond)
    return share


@triton.jit
def gelu(x):
    return x * normal_cdf(x)


@triton.jit
def gelu_with_slope(x):
    share = normal_cdf(x)
    return x * share, share + x * 0.3989422804014327 * tl.exp2(x * x * -0.7213475204444817)
