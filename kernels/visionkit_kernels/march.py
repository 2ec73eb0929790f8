# ruff: noqa: ANN001, ANN201  (kernels take what lies on the device, and return nothing)
"""Marching rays through factorised radiance fields, forward and backward, with nothing kept per sample.

A ray is cut into N intervals, moved by noise that a counter makes, so that both passes see the same. At the middle of
each, density is read from one dense grid (vector-matrix: a trilinear lookup of the summed products, which is the same
function) or from three planes of one channel (tri-planes), and, with optical depth s_i = density_i * width_i,

    w_i = exp(-sum_{j<i} s_j) (1 - exp(-s_i))

is what the ray sees of it. Colours are looked up and sent through the network only where w_i exceeds ``min_weight``, by
tiles of rays: a tile none of whose rays sees anything at a step goes on at once, and one whose rays are all opaque
stops. Sums of w c, w t, w and the distortion loss are all that is written.

Backward walks the same way again. With d_i = dL/dw_i and S = sum_i w_i d_i, known beforehand from the outputs, because
they are linear in w and the distortion loss is quadratic,

    dL/ds_i = exp(-sum_{j<=i} s_j) d_i - (S - sum_{j<=i} w_j d_j)

Where rays want gradients, what the lookups give their coordinates goes to origins, directions and the sample's middle;
middles and widths give it on to near and far.

Gradients of the grids are added atomically, so their last bits vary from run to run; those of the network are summed in
registers by programs that walk over many tiles.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from visionkit_kernels._common import (
    NAN,
    dot,
    dot_types,
    exchanged,
    little_shared_memory,
    on_device,
    padded,
    programs,
    sum_type,
)
from visionkit_kernels._gelu import gelu
from visionkit_kernels._grids import cell, density_at, density_slopes, plane_gradient, volume_gradient
from visionkit_kernels._network import (
    direction_gradient,
    direction_tile,
    first_layer,
    first_layer_gradient,
    kept,
    store_sum,
    weight_tile,
)
from visionkit_kernels.tiles import capability, chosen

LARGEST_WIDTH = 64  # of the network
LARGEST_CHANNELS = 32  # of colour, of each plane


@triton.jit
def scramble(x):
    """A 32-bit hash (Wellons' lowbias32)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def edge_share(key, i, samples, NOISE: tl.constexpr, ACC: tl.constexpr):
    """How far from near to far edge i of the intervals of a ray lies; the last one does not move."""
    step = i.to(ACC)
    if NOISE:
        bits = scramble(key + i.to(tl.uint32)) >> 8
        step += tl.where(i < samples, bits.to(ACC) * (1.0 / 16777216.0), 0.0)
    return step / samples


@triton.jit
def _triple(x, rays, live, ACC: tl.constexpr):
    return (
        tl.load(x + rays * 3, mask=live, other=0.0).to(ACC),
        tl.load(x + rays * 3 + 1, mask=live, other=0.0).to(ACC),
        tl.load(x + rays * 3 + 2, mask=live, other=0.0).to(ACC),
    )


@triton.jit
def _store_triple(x, a, b, c, rays, live):
    tl.store(x + rays * 3, a, mask=live)
    tl.store(x + rays * 3 + 1, b, mask=live)
    tl.store(x + rays * 3 + 2, c, mask=live)


@triton.jit
def _box(box, R, ACC: tl.constexpr):
    """The lower corner, and cells per length along each axis."""
    lx, ly, lz = tl.load(box).to(ACC), tl.load(box + 1).to(ACC), tl.load(box + 2).to(ACC)
    hx, hy, hz = tl.load(box + 3).to(ACC), tl.load(box + 4).to(ACC), tl.load(box + 5).to(ACC)
    return lx, ly, lz, R / (hx - lx), R / (hy - ly), R / (hz - lz)


@triton.jit
def _key(seed, rays, NOISE: tl.constexpr, SHARED: tl.constexpr):
    """What the noise of a ray counts from; if it is shared, all count from that of the first."""
    if SHARED:
        rays = tl.zeros_like(rays)
    if NOISE:
        key = scramble(tl.load(seed).to(tl.uint32) ^ scramble(rays.to(tl.uint32)))
    else:
        key = rays
    return key


@triton.jit
def _zeros(RAYS: tl.constexpr, ACC: tl.constexpr):
    return tl.zeros([RAYS], ACC), tl.zeros([RAYS], ACC), tl.zeros([RAYS], ACC), tl.zeros([RAYS], ACC)


@triton.jit
def march_forward(
    field, bias, planes, vectors, w1, b1, w2, wd, b2, w3, b3, origins, directions, near, far, box, seed,
    rgb, depth, opacity, distortion,
    near_b, near_r, far_b, far_r, batch, count, samples, R, stride_p, stride_v, min_weight, opaque,
    RAYS: tl.constexpr, C: tl.constexpr, H: tl.constexpr, E: tl.constexpr, FREQUENCIES: tl.constexpr,
    VOLUME: tl.constexpr, NOISE: tl.constexpr, SHARED: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What one tile of rays of one scene sees."""
    tiles = tl.cdiv(count, RAYS)
    scene = (tl.program_id(0) // tiles).to(tl.int64)
    rays = tl.program_id(0) % tiles * RAYS + tl.arange(0, RAYS)
    live = rays < count
    fields = R * R * R if VOLUME else 3 * R * R
    field += scene * fields
    planes += scene * R * R * C
    vectors += scene * R * C
    all_rays = scene * count + rays

    ox, oy, oz = _triple(origins, all_rays, live, ACC)
    dx, dy, dz = _triple(directions, all_rays, live, ACC)
    lx, ly, lz, px, py, pz = _box(box, R, ACC)
    start = tl.load(near + scene * near_b + rays * near_r, mask=live, other=0.0).to(ACC)
    end = tl.load(far + scene * far_b + rays * far_r, mask=live, other=0.0).to(ACC)
    key = _key(seed, all_rays, NOISE, SHARED)

    along = dot(
        direction_tile(directions, all_rays, live, E, FREQUENCIES, ACC), weight_tile(wd, E, H),
        tl.zeros([RAYS, H], ACC), DOT, ACC, PRECISION,
    )  # fmt: skip
    along += tl.load(b2 + tl.arange(0, H)).to(ACC)[None, :]
    bias1 = tl.load(b1 + tl.arange(0, H)).to(ACC)
    bias3 = tl.load(b3 + tl.arange(0, 16)).to(ACC)
    wx, wy, wz = weight_tile(w1, C, H), weight_tile(w1 + C * H, C, H), weight_tile(w1 + 2 * C * H, C, H)
    second, third = weight_tile(w2, H, H), weight_tile(w3, H, 16)

    colour = tl.zeros([RAYS, 16], ACC)
    tau, total, moment, spread = _zeros(RAYS, ACC)
    i = 0
    left = tl.min(tau, 0)
    while (i < samples) & (left < opaque):
        first = edge_share(key, tl.zeros([RAYS], tl.int32) + i, samples, NOISE, ACC)
        last = edge_share(key, tl.zeros([RAYS], tl.int32) + (i + 1), samples, NOISE, ACC)
        here, after = start + (end - start) * first, start + (end - start) * last
        width, middle = after - here, (after + here) * 0.5
        ix, fx = cell((ox + dx * middle - lx) * px - 0.5, R)
        iy, fy = cell((oy + dy * middle - ly) * py - 0.5, R)
        iz, fz = cell((oz + dz * middle - lz) * pz - 0.5, R)
        sigma = tl.maximum(density_at(field, bias, ix, fx, iy, fy, iz, fz, R, VOLUME, ACC), 0.0, NAN)
        optical = tl.where(live, sigma * width, 0.0)
        weight = tl.exp(-tau) * (1 - tl.exp(-optical))
        tau += optical
        spread += weight * weight * width / 3 + 2 * weight * (middle * total - moment)
        total += weight
        moment += weight * middle
        seen = weight > min_weight
        if tl.max(seen.to(tl.int32), 0) > 0:
            h = tl.zeros([RAYS, H], ACC) + bias1[None, :]
            h, _, _, _, _ = first_layer(
                h, planes, vectors, wx, ix, fx, iy, fy, iz, fz, seen, R, stride_p, stride_v, 0,
                C, VOLUME, DOT, ACC, PRECISION,
            )  # fmt: skip
            h, _, _, _, _ = first_layer(
                h, planes, vectors, wy, iz, fz, ix, fx, iy, fy, seen, R, stride_p, stride_v, 1,
                C, VOLUME, DOT, ACC, PRECISION,
            )  # fmt: skip
            h, _, _, _, _ = first_layer(
                h, planes, vectors, wz, iy, fy, iz, fz, ix, fx, seen, R, stride_p, stride_v, 2,
                C, VOLUME, DOT, ACC, PRECISION,
            )  # fmt: skip
            y = gelu(dot(gelu(h), second, along, DOT, ACC, PRECISION))
            z = dot(y, third, tl.zeros([RAYS, 16], ACC), DOT, ACC, PRECISION) + bias3[None, :]
            colour += tl.where(seen, weight, 0.0)[:, None] / (1 + tl.exp(-z))
        i += 1
        left = tl.min(tl.where(live, tau, opaque), 0)
    channel = tl.arange(0, 16)
    place = rgb + all_rays[:, None] * 3 + channel[None, :]
    tl.store(place, colour, mask=live[:, None] & (channel < 3)[None, :])
    tl.store(depth + all_rays, moment, mask=live)
    tl.store(opacity + all_rays, total, mask=live)
    tl.store(distortion + all_rays, spread, mask=live)


@triton.jit
def march_backward(
    field, bias, planes, vectors, w1, b1, w2, wd, b2, w3, b3, origins, directions, near, far, box, seed,
    rgb, depth, opacity, distortion, grad_rgb, grad_depth, grad_opacity, grad_distortion,
    dfield, dbias, dplanes, dvectors, dw1, db1, dw2, dwd, dw3, db3, dorigins, ddirections, dnear, dfar,
    near_b, near_r, far_b, far_r, batch, count, samples, R, stride_p, stride_v, min_weight, opaque,
    RAYS: tl.constexpr, C: tl.constexpr, H: tl.constexpr, E: tl.constexpr, FREQUENCIES: tl.constexpr,
    USED: tl.constexpr, RAY_GRADIENTS: tl.constexpr, VOLUME: tl.constexpr, NOISE: tl.constexpr, SHARED: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients by every so many-th tile of rays; those of the network are this program's own part."""
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(count, RAYS)
    lx, ly, lz, px, py, pz = _box(box, R, ACC)
    channel = tl.arange(0, 16)
    bias1 = tl.load(b1 + tl.arange(0, H)).to(ACC)
    bias2 = tl.load(b2 + tl.arange(0, H)).to(ACC)
    bias3 = tl.load(b3 + channel).to(ACC)
    wx, wy, wz = weight_tile(w1, C, H), weight_tile(w1 + C * H, C, H), weight_tile(w1 + 2 * C * H, C, H)
    second, third, turned = weight_tile(w2, H, H), weight_tile(w3, H, 16), weight_tile(wd, E, H)
    dwx, dwy, dwz = tl.zeros([H, C], ACC), tl.zeros([H, C], ACC), tl.zeros([H, C], ACC)
    dsecond, dturned, dthird = tl.zeros([H, H], ACC), tl.zeros([H, E], ACC), tl.zeros([H, 16], ACC)
    # a product with ones sums over rays where threads would have to exchange what they have
    ones, dsums = tl.full([RAYS, 16], 1.0, ACC).to(DOT), tl.zeros([H, 16], ACC)
    dbias3 = tl.zeros([16], ACC)
    dlift = tl.zeros([RAYS], ACC)

    for tile in range(tl.program_id(0), tiles * batch, tl.num_programs(0)):
        scene = (tile // tiles).to(tl.int64)
        rays = tile % tiles * RAYS + tl.arange(0, RAYS)
        live = rays < count
        fields = R * R * R if VOLUME else 3 * R * R
        own_field, own_dfield = field + scene * fields, dfield + scene * fields
        own_planes, own_dplanes = planes + scene * R * R * C, dplanes + scene * R * R * C
        own_vectors, own_dvectors = vectors + scene * R * C, dvectors + scene * R * C
        all_rays = scene * count + rays

        ox, oy, oz = _triple(origins, all_rays, live, ACC)
        dx, dy, dz = _triple(directions, all_rays, live, ACC)
        start = tl.load(near + scene * near_b + rays * near_r, mask=live, other=0.0).to(ACC)
        end = tl.load(far + scene * far_b + rays * far_r, mask=live, other=0.0).to(ACC)
        key = _key(seed, all_rays, NOISE, SHARED)

        place = all_rays[:, None] * 3 + channel[None, :]
        three = live[:, None] & (channel < 3)[None, :]
        g_rgb = tl.load(grad_rgb + place, mask=three, other=0.0).to(ACC)
        g_depth = tl.load(grad_depth + all_rays, mask=live, other=0.0).to(ACC)
        g_opacity = tl.load(grad_opacity + all_rays, mask=live, other=0.0).to(ACC)
        g_spread = tl.load(grad_distortion + all_rays, mask=live, other=0.0).to(ACC)
        all_moment = tl.load(depth + all_rays, mask=live, other=0.0).to(ACC)
        all_total = tl.load(opacity + all_rays, mask=live, other=0.0).to(ACC)
        ahead = exchanged(tl.sum(g_rgb * tl.load(rgb + place, mask=three, other=0.0).to(ACC), 1))
        ahead += g_depth * all_moment + g_opacity * all_total
        ahead += 2 * g_spread * tl.load(distortion + all_rays, mask=live, other=0.0).to(ACC)

        seen_from = direction_tile(directions, all_rays, live, E, FREQUENCIES, ACC).to(DOT)

        tau, total, moment, _ = _zeros(RAYS, ACC)
        if RAY_GRADIENTS:
            dox, doy, doz, dstart = _zeros(RAYS, ACC)
            ddx, ddy, ddz, dend = _zeros(RAYS, ACC)
            dalong = tl.zeros([RAYS, H], ACC)
        i = 0
        left = tl.min(tau, 0)
        while (i < samples) & (left < opaque):
            first = edge_share(key, tl.zeros([RAYS], tl.int32) + i, samples, NOISE, ACC)
            last = edge_share(key, tl.zeros([RAYS], tl.int32) + (i + 1), samples, NOISE, ACC)
            here, after = start + (end - start) * first, start + (end - start) * last
            width, middle = after - here, (after + here) * 0.5
            ix, fx = cell((ox + dx * middle - lx) * px - 0.5, R)
            iy, fy = cell((oy + dy * middle - ly) * py - 0.5, R)
            iz, fz = cell((oz + dz * middle - lz) * pz - 0.5, R)
            sigma = density_at(own_field, bias, ix, fx, iy, fy, iz, fz, R, VOLUME, ACC)
            optical = tl.where(live, tl.maximum(sigma, 0.0, NAN) * width, 0.0)
            weight = tl.exp(-tau) * (1 - tl.exp(-optical))
            tau += optical
            # the distortion loss's slope: what lies before, and what lies after
            before, before_moment = total, moment
            total += weight
            moment += weight * middle
            slope = middle * (before - (all_total - total)) + (all_moment - moment) - before_moment
            dweight = g_depth * middle + g_opacity + g_spread * (2 * weight * width / 3 + 2 * slope)
            seen = weight > min_weight
            if RAY_GRADIENTS:
                gx, gy, gz, _ = _zeros(RAYS, ACC)
            if tl.max(seen.to(tl.int32), 0) > 0:
                h = tl.zeros([RAYS, H], ACC) + bias1[None, :]
                h, value_x, slope_x, plane_x, vector_x = first_layer(
                    h, own_planes, own_vectors, wx, ix, fx, iy, fy, iz, fz, seen, R, stride_p, stride_v, 0,
                    C, VOLUME, DOT, ACC, PRECISION,
                )  # fmt: skip
                h, value_y, slope_y, plane_y, vector_y = first_layer(
                    h, own_planes, own_vectors, wy, iz, fz, ix, fx, iy, fy, seen, R, stride_p, stride_v, 1,
                    C, VOLUME, DOT, ACC, PRECISION,
                )  # fmt: skip
                h, value_z, slope_z, plane_z, vector_z = first_layer(
                    h, own_planes, own_vectors, wz, iy, fy, iz, fz, ix, fx, seen, R, stride_p, stride_v, 2,
                    C, VOLUME, DOT, ACC, PRECISION,
                )  # fmt: skip
                hidden, slope1 = kept(h, DOT)
                y = dot(seen_from, turned, tl.zeros([RAYS, H], ACC) + bias2[None, :], DOT, ACC, PRECISION)
                y = dot(hidden, second, y, DOT, ACC, PRECISION)
                inner, slope2 = kept(y, DOT)
                z = dot(inner, third, tl.zeros([RAYS, 16], ACC), DOT, ACC, PRECISION) + bias3[None, :]
                c = 1 / (1 + tl.exp(-z))
                dweight += tl.where(seen, exchanged(tl.sum(g_rgb * c, 1)), 0.0)
                dz3 = tl.where(seen, weight, 0.0)[:, None] * g_rgb * c * (1 - c)
                dbias3 += tl.sum(dz3, 0)
                dthird = dot(tl.trans(inner), dz3, dthird, DOT, ACC, PRECISION)
                dy3 = dot(dz3, tl.trans(third), tl.zeros([RAYS, H], ACC), DOT, ACC, PRECISION) * slope2
                if RAY_GRADIENTS:
                    dalong += dy3
                dturned = dot(tl.trans(dy3), seen_from, dturned, DOT, ACC, PRECISION)
                dsecond = dot(tl.trans(hidden), dy3, dsecond, DOT, ACC, PRECISION)
                dh = dot(dy3, tl.trans(second), tl.zeros([RAYS, H], ACC), DOT, ACC, PRECISION) * slope1
                dsums = dot(tl.trans(dh), ones, dsums, DOT, ACC, PRECISION)
                dwx, gx_x, gy_x, gz_x = first_layer_gradient(
                    dwx, dh, value_x, slope_x, plane_x, vector_x, own_planes, own_vectors,
                    own_dplanes, own_dvectors, wx,
                    ix, fx, iy, fy, iz, fz, seen, R, stride_p, stride_v, 0,
                    C, USED, VOLUME, RAY_GRADIENTS, DOT, ACC, PRECISION,
                )  # fmt: skip
                dwy, gz_y, gx_y, gy_y = first_layer_gradient(
                    dwy, dh, value_y, slope_y, plane_y, vector_y, own_planes, own_vectors,
                    own_dplanes, own_dvectors, wy,
                    iz, fz, ix, fx, iy, fy, seen, R, stride_p, stride_v, 1,
                    C, USED, VOLUME, RAY_GRADIENTS, DOT, ACC, PRECISION,
                )  # fmt: skip
                dwz, gy_z, gz_z, gx_z = first_layer_gradient(
                    dwz, dh, value_z, slope_z, plane_z, vector_z, own_planes, own_vectors,
                    own_dplanes, own_dvectors, wz,
                    iy, fy, iz, fz, ix, fx, seen, R, stride_p, stride_v, 2,
                    C, USED, VOLUME, RAY_GRADIENTS, DOT, ACC, PRECISION,
                )  # fmt: skip
                if RAY_GRADIENTS:
                    gx, gy, gz = gx_x + gx_y + gx_z, gy_x + gy_y + gy_z, gz_x + gz_y + gz_z
            ahead -= weight * dweight
            doptical = tl.where(live & (sigma > 0), tl.exp(-tau) * dweight - ahead, 0.0)
            dsigma = doptical * width
            if VOLUME:
                volume_gradient(own_dfield, dsigma, ix, fx, iy, fy, iz, fz, R, ACC)
            else:
                plane_gradient(own_dfield, dsigma, ix, fx, iy, fy, R, ACC)
                plane_gradient(own_dfield + R * R, dsigma, iz, fz, ix, fx, R, ACC)
                plane_gradient(own_dfield + 2 * R * R, dsigma, iy, fy, iz, fz, R, ACC)
                dlift += dsigma
            if RAY_GRADIENTS:
                sx, sy, sz = density_slopes(own_field, dsigma, ix, fx, iy, fy, iz, fz, R, VOLUME, ACC)
                gx, gy, gz = (gx + sx) * px, (gy + sy) * py, (gz + sz) * pz
                dox, doy, doz = dox + gx, doy + gy, doz + gz
                ddx, ddy, ddz = ddx + gx * middle, ddy + gy * middle, ddz + gz * middle
                dmiddle = gx * dx + gy * dy + gz * dz + weight * g_depth
                dmiddle += 2 * g_spread * weight * (before - (all_total - total))
                dwidth = doptical * sigma + g_spread * weight * weight / 3
                dhere, dafter = dmiddle * 0.5 - dwidth, dmiddle * 0.5 + dwidth
                dstart += dhere * (1 - first) + dafter * (1 - last)
                dend += dhere * first + dafter * last
            i += 1
            left = tl.min(tl.where(live, tau, opaque), 0)
        if RAY_GRADIENTS:
            seen_along = dot(dalong, tl.trans(turned), tl.zeros([RAYS, E], ACC), DOT, ACC, PRECISION)
            sx, sy, sz = direction_gradient(seen_along, directions, all_rays, live, E, FREQUENCIES, ACC)
            _store_triple(dorigins, dox, doy, doz, all_rays, live)
            _store_triple(ddirections, ddx + sx, ddy + sy, ddz + sz, all_rays, live)
            tl.store(dnear + all_rays, dstart, mask=live)
            tl.store(dfar + all_rays, dend, mask=live)

    store_sum(dw1 + program * 3 * H * C, dwx, H, C)
    store_sum(dw1 + program * 3 * H * C + H * C, dwy, H, C)
    store_sum(dw1 + program * 3 * H * C + 2 * H * C, dwz, H, C)
    store_sum(dw2 + program * H * H, dsecond, H, H)
    store_sum(dwd + program * H * E, dturned, H, E)
    store_sum(dw3 + program * H * 16, dthird, H, 16)
    store_sum(db1 + program * H * 16, dsums, H, 16)
    tl.store(db3 + program * 16 + channel, dbias3)
    tl.store(dbias + program, tl.sum(dlift, 0))


def config(planes: Tensor, backward: bool) -> dict:
    """Rays of a tile and warps of a program. Without a word on registers, ptxas gives the backward 32 on sm_80, and
    the forward in float32 168.

    A warp of its own waits for no other. Wider types' weights would fill the shared memory before there are eight.
    """
    narrow = planes.dtype == torch.bfloat16
    if backward:  # whose sums of gradients fill the registers of four warps
        little = planes.dtype == torch.float32 and capability(planes.device) < 90  # shared memory: 163 KB
        sizes = dict(RAYS=32 if little else 64, num_warps=4 if narrow else 8)
    else:
        sizes = dict(RAYS=16, num_warps=1) if narrow else dict(RAYS=64, num_warps=4)
    name = f"march {'backward' if backward else 'forward'}"
    return chosen(name, dict(sizes, num_stages=1, maxnreg=255), planes.dtype, planes.device)


def _switches(
    planes: Tensor, vectors: Tensor, w1: Tensor, wd: Tensor, frequencies: int, seed: Tensor | None, shared: bool
) -> dict:
    sizes = dict(C=planes.shape[-1], H=w1.shape[-1], E=wd.shape[0], FREQUENCIES=frequencies)
    return dict(sizes, VOLUME=vectors.numel() > 0, NOISE=seed is not None, SHARED=shared, **dot_types(planes.dtype))


def _opaque(dtype: torch.dtype) -> float:
    """Optical depth behind which nothing changes a sum of that type any more."""
    return 40.0 if dtype == torch.float64 else 17.0


def launch_forward(
    field: Tensor, bias: Tensor, planes: Tensor, vectors: Tensor,
    w1: Tensor, b1: Tensor, w2: Tensor, wd: Tensor, b2: Tensor, w3: Tensor, b3: Tensor,
    origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, box: Tensor, seed: Tensor | None,
    samples: int, frequencies: int, min_weight: float, used: int, shared: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """rgb (B, R, 3), depth, opacity, distortion (B, R). The first ``used`` channels of the grids are not zero."""
    (batch, count), size = origins.shape[:2], planes.shape[2]
    new = lambda *shape: planes.new_empty(batch, count, *shape, dtype=sum_type(planes.dtype))
    out = new(3), new(), new(), new()
    sizes = config(planes, backward=False)
    with on_device(planes):
        march_forward[(batch * triton.cdiv(count, sizes["RAYS"]),)](
            field, bias, planes, vectors, w1, b1, w2, wd, b2, w3, b3, origins, directions, near, far, box, seed, *out,
            *near.stride(), *far.stride(), batch, count, samples, size, planes.stride(0), vectors.stride(0),
            min_weight, _opaque(planes.dtype),
            **sizes, **_switches(planes, vectors, w1, wd, frequencies, seed, shared),
        )  # fmt: skip
    return out


march = torch.library.custom_op("visionkit_kernels::march", launch_forward, mutates_args=())


@march.register_fake
def _(field, bias, planes, vectors, w1, b1, w2, wd, b2, w3, b3, origins, *rest):  # noqa: ANN001, ANN002, ANN202
    new = lambda *shape: planes.new_empty(*origins.shape[:2], *shape, dtype=sum_type(planes.dtype))
    return new(3), new(), new(), new()


def launch_backward(
    grad_rgb: Tensor, grad_depth: Tensor, grad_opacity: Tensor, grad_distortion: Tensor,
    rgb: Tensor, depth: Tensor, opacity: Tensor, distortion: Tensor,
    field: Tensor, bias: Tensor, planes: Tensor, vectors: Tensor,
    w1: Tensor, b1: Tensor, w2: Tensor, wd: Tensor, b2: Tensor, w3: Tensor, b3: Tensor,
    origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, box: Tensor, seed: Tensor | None,
    samples: int, frequencies: int, min_weight: float, used: int, shared: bool, ray_gradients: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of field, bias, planes, vectors and the network's seven tensors; and those of origins, directions, near
    and far, if they are asked for."""
    (batch, count), size = origins.shape[:2], planes.shape[2]
    kind = sum_type(planes.dtype)
    sizes = config(planes, backward=True)
    grids = [x.new_zeros(x.shape, dtype=kind) for x in (planes, vectors)]
    dfield = field.new_zeros(field.shape, dtype=kind)
    warps = 8  # that the registers of a multiprocessor hold
    count_of = min(batch * triton.cdiv(count, sizes["RAYS"]), programs(planes.device, warps // sizes["num_warps"]))
    part = lambda *shape: planes.new_empty(count_of, *shape, dtype=kind)
    (channels, width), turned = w1.shape[1:], wd.shape[0]
    parts = [
        part(), part(3, width, channels), part(width, 16), part(width, width), part(width, turned), part(width, 16),
        part(16),
    ]  # fmt: skip
    dbias, dw1, db1, dw2, dwd, dw3, db3 = parts
    rays = [planes.new_empty(x.shape, dtype=kind) for x in (origins, directions, near, far) if ray_gradients]
    with on_device(planes):
        march_backward[(count_of,)](
            field, bias, planes, vectors, w1, b1, w2, wd, b2, w3, b3, origins, directions, near, far, box, seed,
            rgb, depth, opacity, distortion,
            *(x.contiguous() for x in (grad_rgb, grad_depth, grad_opacity, grad_distortion)),
            dfield, dbias, *grids, dw1, db1, dw2, dwd, dw3, db3, *(rays or [None] * 4),
            *near.stride(), *far.stride(), batch, count, samples, size, planes.stride(0), vectors.stride(0),
            min_weight, _opaque(planes.dtype),
            USED=used, RAY_GRADIENTS=ray_gradients, **sizes,
            **_switches(planes, vectors, w1, wd, frequencies, seed, shared),
        )  # fmt: skip
    dbias, dw1, db1, dw2, dwd, dw3, db3 = (x.sum(0) for x in parts)
    network = dw1.mT, db1[:, 0], dw2, dwd.mT, dwd[:, -1], dw3, db3  # the last feature of directions is one
    inputs = field, bias, planes, vectors, w1, b1, w2, wd, b2, w3, b3
    grads = dfield, dbias.reshape(bias.shape), *grids, *network
    return [*(grad.to(x.dtype).contiguous() for x, grad in zip(inputs, grads)), *rays]


march_gradients = torch.library.custom_op("visionkit_kernels::march_backward", launch_backward, mutates_args=())


@march_gradients.register_fake
def _(*inputs):  # noqa: ANN002, ANN202
    count = 15 if inputs[-1] else 11
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[8 : 8 + count]]


def _setup(ctx, inputs, output) -> None:  # noqa: ANN001
    ctx.options = inputs[17:]
    ctx.save_for_backward(*output, *inputs[:17])


def _backward(ctx, *grads) -> tuple:  # noqa: ANN001, ANN002
    found = march_gradients(*grads, *ctx.saved_tensors, *ctx.options, any(ctx.needs_input_grad[11:15]))
    return *found, *[None] * (22 - len(found))


march.register_autograd(_backward, setup_context=_setup)


def refuses(planes: Tensor, weight1: Tensor, weight2: Tensor, origins: Tensor, *rays: Tensor) -> str | None:
    """Why the kernels do not take these tensors, or None. See [march_rays]; ``planes`` are those of colour."""
    width, channels = weight1.shape[0], weight1.shape[1] // 3
    if width > LARGEST_WIDTH or channels > LARGEST_CHANNELS or weight2.shape[1] - width > 32:
        return (
            f"networks of at most {LARGEST_WIDTH} wide, {LARGEST_CHANNELS} channels of colour a plane "
            "and 4 frequencies of directions"
        )
    if planes.dtype == torch.float32 and little_shared_memory(planes.device):
        return "float32 networks need more shared memory than the device has"
    if planes.shape[-1] != planes.shape[-2]:
        return "grids must have one size along all axes"
    return "a tensor is empty" if 0 in (*planes.shape, *origins.shape) else None


def march_rays(
    field: Tensor,
    bias: Tensor | None,
    planes: Tensor,
    vectors: Tensor | None,
    network: tuple[Tensor, ...],
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    box: Tensor,
    *,
    num_samples: int,
    seed: Tensor | None = None,
    shared: bool = False,
    min_weight: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Marches rays through the fields of B scenes; see the top of the module. Gradients for all but box and seed.

    Args:
        field: (B, R, R, R), density at the grid's cells, axes z, y, x; or (B, 3, R, R), planes whose sum with ``bias``
            is density. Negative values count as none.
        bias: (1,), with planes.
        planes: (3, B, C, R, R), channels of colour; their type is that of the products.
        vectors: (3, B, C, R, 1), which multiply the planes; None for tri-planes.
        network: weights and biases of the three layers, see ``visionkit.ops.ColourNetwork``.
        origins, directions: (B, rays, 3).
        near, far: broadcast with (B, rays).
        box: (2, 3), the corners of the grids.
        num_samples: intervals along a ray.
        seed: whole number, a tensor of no dimension; moves the edges as ``visionkit.ops.ray_edges`` does.
        shared: whether it moves those of all rays alike, and not each ray's on their own.
        min_weight: colours of samples below this weight are left out.

    Returns:
        rgb (B, rays, 3) on black; depth, opacity and distortion loss (B, rays). At least float32.
    """
    dtype, kind = planes.dtype, sum_type(planes.dtype)
    batch, rays = origins.shape[:2]
    weight1, bias1, weight2, bias2, weight3, bias3 = network
    width, channels = weight1.shape[0], planes.shape[2]
    w, c, e = padded(width), padded(channels), padded(weight2.shape[1] - width)
    layers = (
        _filled(weight1.unflatten(1, (3, channels)).permute(1, 2, 0), (3, c, w), dtype),
        _filled(bias1, (w,), kind),
        _filled(weight2[:, :width].T, (w, w), dtype),
        _filled(weight2[:, width:].T, (e, w), dtype),
        _filled(bias2, (w,), kind),
        _filled(weight3.T, (w, 16), dtype),
        _filled(bias3, (16,), kind),
    )
    field = field.to(kind).contiguous()
    bias = field.new_zeros(1) if bias is None else bias.to(kind)
    size = planes.shape[-1]
    colours = _filled(planes.permute(0, 1, 3, 4, 2), (3, batch, size, size, c), dtype)
    if vectors is None:
        lines = colours.new_empty(3, 0, 0, c)
    else:
        lines = _filled(vectors[..., 0].permute(0, 1, 3, 2), (3, batch, size, c), dtype)
    rays_of = [x.to(kind).contiguous() for x in (origins, directions)]
    near, far = (torch.as_tensor(x, device=planes.device).to(kind).expand(batch, rays) for x in (near, far))
    frequencies = (weight2.shape[1] - width - 3) // 6
    return march(
        field, bias, colours, lines, *layers, *rays_of, near, far, box.to(kind).contiguous(), seed,
        num_samples, frequencies, min_weight, channels, shared,
    )  # fmt: skip


def _filled(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor in that type, contiguous, with zeros after its values up to a shape."""
    missing = [size for have, want in zip(reversed(x.shape), reversed(shape)) for size in (0, want - have)]
    return torch.nn.functional.pad(x.to(dtype), missing).contiguous()
