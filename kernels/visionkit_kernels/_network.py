# ruff: noqa: ANN001, ANN201  (kernels take what lies on the device, and return nothing)
"""The colour network of a ray march, of plane times vector at the samples of a tile of rays, and its gradients."""

import triton
import triton.language as tl

from visionkit_kernels._common import dot, exchanged
from visionkit_kernels._gelu import gelu_with_slope
from visionkit_kernels._grids import (
    plane_colour,
    plane_colour_gradient,
    plane_slopes,
    reaches,
    vector_colour,
    vector_colour_gradient,
    vector_colour_slope,
)


@triton.jit
def _direction_waves(directions, rays, live, E: tl.constexpr, FREQUENCIES: tl.constexpr, ACC: tl.constexpr):
    """What features of directions, (rays, E), are made of.

    Returns:
        the part d of a direction and the factor 2^k that each is made with; whether each is a sine, whether it is a
        wave at all, and whether it is a feature and no filling; the axis of d, (E,).
    """
    column = tl.arange(0, E)
    waves = 3 * FREQUENCIES
    each: tl.constexpr = FREQUENCIES if FREQUENCIES > 0 else 1  # without frequencies nothing may divide by them
    axis = tl.where(column < 2 * waves, (column % (3 * each)) // each, column - 2 * waves)
    mask = live[:, None] & (column < 2 * waves + 3)[None, :]
    d = tl.load(directions + rays[:, None] * 3 + axis[None, :], mask=mask, other=0.0).to(ACC)
    factor = tl.exp2((column % each).to(tl.float32)).to(ACC)[None, :]
    return d, factor, (column < waves)[None, :], (column < 2 * waves)[None, :], mask, axis


@triton.jit
def direction_tile(directions, rays, live, E: tl.constexpr, FREQUENCIES: tl.constexpr, ACC: tl.constexpr):
    """Features of directions: sines of 2^k d, their cosines, d: (rays, E); zero beyond, but for the last, which is one.

    There is room for it, as their number is odd. In a product with gradients it makes the sum over rays.
    """
    d, factor, is_sine, is_wave, mask, _ = _direction_waves(directions, rays, live, E, FREQUENCIES, ACC)
    turned = tl.where(is_sine, tl.sin(d * factor), tl.cos(d * factor))
    one = tl.where(tl.arange(0, E) == E - 1, 1.0, 0.0).to(ACC)[None, :]
    return tl.where(mask, tl.where(is_wave, turned, d), one)


@triton.jit
def direction_gradient(value, directions, rays, live, E: tl.constexpr, FREQUENCIES: tl.constexpr, ACC: tl.constexpr):
    """Gradients of directions, three of (rays,), by those of their features, (rays, E)."""
    d, factor, is_sine, is_wave, mask, axis = _direction_waves(directions, rays, live, E, FREQUENCIES, ACC)
    slope = tl.where(is_sine, tl.cos(d * factor), -tl.sin(d * factor)) * factor
    value = tl.where(mask, tl.where(is_wave, slope, 1.0) * value, 0.0)
    return (
        tl.sum(tl.where((axis == 0)[None, :], value, 0.0), 1),
        tl.sum(tl.where((axis == 1)[None, :], value, 0.0), 1),
        tl.sum(tl.where((axis == 2)[None, :], value, 0.0), 1),
    )


@triton.jit
def weight_tile(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.load(x + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])


@triton.jit
def store_sum(x, value, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    tl.store(x + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :], value)


@triton.jit
def looked_up(
    planes, vectors, iw, fw, ih, fh, iv, fv, seen, R, stride_p, stride_v,
    P: tl.constexpr, C: tl.constexpr, VOLUME: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What plane P and its vector, ones without, hold at the rays' samples: (rays, C) each."""
    plane = plane_colour(planes + P * stride_p.to(tl.int64), iw, fw, ih, fh, seen, R, C, ACC)
    if VOLUME:
        vector = vector_colour(vectors + P * stride_v.to(tl.int64), iv, fv, seen, R, C, ACC)
    else:
        vector = tl.full(plane.shape, 1.0, ACC)
    return plane, vector


@triton.jit
def kept(x, DOT: tl.constexpr):
    """GELU and its slope in the products' type, which takes fewest registers until they are needed again."""
    value, slope = gelu_with_slope(x)
    return value.to(DOT), slope.to(DOT)


@triton.jit
def first_layer(
    h, planes, vectors, w1, iw, fw, ih, fh, iv, fv, seen, R, stride_p, stride_v, P: tl.constexpr,
    C: tl.constexpr, VOLUME: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds what plane P, and its vector, give to the first layer, by that plane's rows (C, H) of its weights.

    Returns the sum, and what its gradient takes: see [kept], and [looked_up].
    """
    plane, vector = looked_up(
        planes, vectors, iw, fw, ih, fh, iv, fv, seen, R, stride_p, stride_v, P, C, VOLUME, ACC
    )  # fmt: skip
    value, slope = kept(plane * vector, DOT)
    return dot(value, w1, h, DOT, ACC, PRECISION), value, slope, plane.to(DOT), vector.to(DOT)


@triton.jit
def first_layer_gradient(
    dw1, dh, value, slope, plane, vector, planes, vectors, dplanes, dvectors, w1, iw, fw, ih, fh, iv, fv, seen,
    R, stride_p, stride_v, P: tl.constexpr, C: tl.constexpr, USED: tl.constexpr, VOLUME: tl.constexpr,
    RAY_GRADIENTS: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the gradients of plane P and its vector.

    Returns the sum ``dw1`` (H, C) of those of its weights, and those of the three coordinates, (rays,), or zeros.
    """
    dw1 = dot(tl.trans(dh), value, dw1, DOT, ACC, PRECISION)
    dx = exchanged(dot(dh, tl.trans(w1), tl.zeros(value.shape, ACC), DOT, ACC, PRECISION) * slope)
    own_plane, own_vector = P * stride_p.to(tl.int64), P * stride_v.to(tl.int64)
    gw, gh, gv = tl.zeros_like(fw), tl.zeros_like(fw), tl.zeros_like(fw)
    if VOLUME:
        vector_colour_gradient(dvectors + own_vector, dx * plane, iv, fv, seen, R, C, USED, ACC)
        if RAY_GRADIENTS:
            gv = vector_colour_slope(vectors + own_vector, dx * plane, iv, seen, R, C, ACC)
    else:  # density may come from a bias alone: samples outside would all add zeros to the same cells at the edge
        seen &= reaches(iw, R) & reaches(ih, R)
    plane_colour_gradient(dplanes + own_plane, dx * vector, iw, fw, ih, fh, seen, R, C, USED, ACC)
    if RAY_GRADIENTS:
        gw, gh = plane_slopes(planes + own_plane, dx * vector, iw, fw, ih, fh, seen, R, C, ACC)
    return dw1, gw, gh, gv
