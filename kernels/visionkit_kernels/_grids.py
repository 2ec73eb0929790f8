# ruff: noqa: ANN001, ANN201  (kernels take what lies on the device, and return nothing)
"""Lookups in factorised grids, linear between the centres of cells and zero outside, and their gradients.

A lookup at cell i and a share f of the way to the next has as coordinates i + f, one pair an axis.
"""

import triton
import triton.language as tl

from visionkit_kernels._common import exchanged


@triton.jit
def cell(place, R):
    """The cell below a coordinate in cells, and how far above it. A true floor: coordinates may be negative."""
    below = tl.floor(place)
    # far outside is all the same, and would not fit an integer
    return tl.minimum(tl.maximum(below, -2.0), R + 1.0).to(tl.int32), place - below


@triton.jit
def inside(i, R):
    return (i >= 0) & (i < R)


@triton.jit
def line_pair(i, f, R, ACC: tl.constexpr):
    """Shares of the two neighbours, zero where they lie outside."""
    low = tl.where(inside(i, R), 1 - f, 0.0).to(ACC)
    high = tl.where(inside(i + 1, R), f, 0.0).to(ACC)
    return low, high


@triton.jit
def neighbours(i, R):
    """Both neighbours, or the nearest cell inside where one lies outside: with a share of zero nothing comes of it, and
    no lookup needs a mask of its own, which threads would have to exchange."""
    return tl.minimum(tl.maximum(i, 0), R - 1), tl.minimum(tl.maximum(i + 1, 0), R - 1)


@triton.jit
def neighbours_again(i, R):
    """[neighbours] in other words, lest a compiler keep them until gradients are added: registers are scarcer."""
    return tl.maximum(tl.minimum(i, R - 1), 0), tl.maximum(tl.minimum(i + 1, R - 1), 0)


@triton.jit
def reaches(i, R):
    """Whether one of the neighbours lies inside."""
    return (i >= -1) & (i < R)


@triton.jit
def line_slopes(i, R, ACC: tl.constexpr):
    """How the shares of the two neighbours change with the coordinate."""
    return tl.where(inside(i, R), -1.0, 0.0).to(ACC), tl.where(inside(i + 1, R), 1.0, 0.0).to(ACC)


@triton.jit
def volume_density(volume, ix, fx, iy, fy, iz, fz, R, ACC: tl.constexpr):
    """Trilinear lookup of a (R, R, R) grid, axes z, y, x."""
    ax, bx = line_pair(ix, fx, R, ACC)
    ay, by = line_pair(iy, fy, R, ACC)
    az, bz = line_pair(iz, fz, R, ACC)
    total = tl.zeros_like(fx).to(ACC)
    for k in tl.static_range(8):
        x, sx = (ix + 1, bx) if k % 2 else (ix, ax)
        y, sy = (iy + 1, by) if (k // 2) % 2 else (iy, ay)
        z, sz = (iz + 1, bz) if k // 4 else (iz, az)
        share = sx * sy * sz
        total += share * tl.load(volume + (z * R + y) * R + x, mask=share > 0, other=0.0).to(ACC)
    return total


@triton.jit
def volume_gradient(grad, value, ix, fx, iy, fy, iz, fz, R, ACC: tl.constexpr):
    """Adds a gradient to the eight corners of a (R, R, R) grid."""
    ax, bx = line_pair(ix, fx, R, ACC)
    ay, by = line_pair(iy, fy, R, ACC)
    az, bz = line_pair(iz, fz, R, ACC)
    x0, x1 = neighbours_again(ix, R)
    y0, y1 = neighbours_again(iy, R)
    z0, z1 = neighbours_again(iz, R)
    for k in tl.static_range(8):
        x, sx = (x1, bx) if k % 2 else (x0, ax)
        y, sy = (y1, by) if (k // 2) % 2 else (y0, ay)
        z, sz = (z1, bz) if k // 4 else (z0, az)
        share = sx * sy * sz
        tl.atomic_add(grad + (z * R + y) * R + x, share * value, mask=value != 0, sem="relaxed")


@triton.jit
def volume_slopes(volume, value, ix, fx, iy, fy, iz, fz, R, ACC: tl.constexpr):
    """Gradients of x, y and z, (rays,), by that of what was looked up."""
    ax, bx = line_pair(ix, fx, R, ACC)
    ay, by = line_pair(iy, fy, R, ACC)
    az, bz = line_pair(iz, fz, R, ACC)
    dax, dbx = line_slopes(ix, R, ACC)
    day, dby = line_slopes(iy, R, ACC)
    daz, dbz = line_slopes(iz, R, ACC)
    gx, gy, gz = tl.zeros_like(fx).to(ACC), tl.zeros_like(fx).to(ACC), tl.zeros_like(fx).to(ACC)
    x0, x1 = neighbours_again(ix, R)
    y0, y1 = neighbours_again(iy, R)
    z0, z1 = neighbours_again(iz, R)
    for k in tl.static_range(8):
        x, sx, dx = (x1, bx, dbx) if k % 2 else (x0, ax, dax)
        y, sy, dy = (y1, by, dby) if (k // 2) % 2 else (y0, ay, day)
        z, sz, dz = (z1, bz, dbz) if k // 4 else (z0, az, daz)
        share = tl.load(volume + (z * R + y) * R + x, mask=value != 0, other=0.0).to(ACC) * value
        gx += dx * sy * sz * share
        gy += sx * dy * sz * share
        gz += sx * sy * dz * share
    return gx, gy, gz


@triton.jit
def plane_density(plane, iw, fw, ih, fh, R, ACC: tl.constexpr):
    """Bilinear lookup of a (R, R) plane."""
    aw, bw = line_pair(iw, fw, R, ACC)
    ah, bh = line_pair(ih, fh, R, ACC)
    total = tl.zeros_like(fw).to(ACC)
    for k in tl.static_range(4):
        w, sw = (iw + 1, bw) if k % 2 else (iw, aw)
        h, sh = (ih + 1, bh) if k // 2 else (ih, ah)
        share = sw * sh
        total += share * tl.load(plane + h * R + w, mask=share > 0, other=0.0).to(ACC)
    return total


@triton.jit
def plane_gradient(grad, value, iw, fw, ih, fh, R, ACC: tl.constexpr):
    """Adds a gradient to the four corners of a (R, R) plane."""
    aw, bw = line_pair(iw, fw, R, ACC)
    ah, bh = line_pair(ih, fh, R, ACC)
    w0, w1 = neighbours_again(iw, R)
    h0, h1 = neighbours_again(ih, R)
    mask = (value != 0) & reaches(iw, R) & reaches(ih, R)
    for k in tl.static_range(4):
        w, sw = (w1, bw) if k % 2 else (w0, aw)
        h, sh = (h1, bh) if k // 2 else (h0, ah)
        share = sw * sh
        tl.atomic_add(grad + h * R + w, share * value, mask=mask, sem="relaxed")


@triton.jit
def plane_colour(plane, iw, fw, ih, fh, seen, R, C: tl.constexpr, ACC: tl.constexpr):
    """Bilinear lookup of a (R, R, C) plane for the rays that see something: (rays, C)."""
    channel = tl.arange(0, C)
    aw, bw = line_pair(iw, fw, R, ACC)
    ah, bh = line_pair(ih, fh, R, ACC)
    total = tl.zeros([iw.shape[0], C], ACC)
    w0, w1 = neighbours(iw, R)
    h0, h1 = neighbours(ih, R)
    for k in tl.static_range(4):
        w, sw = (w1, bw) if k % 2 else (w0, aw)
        h, sh = (h1, bh) if k // 2 else (h0, ah)
        share = sw * sh
        place = plane + ((h * R + w) * C)[:, None] + channel[None, :]
        total += share[:, None] * tl.load(place, mask=seen[:, None], other=0.0).to(ACC)
    return total


@triton.jit
def plane_colour_gradient(grad, value, iw, fw, ih, fh, seen, R, C: tl.constexpr, USED: tl.constexpr, ACC: tl.constexpr):
    """Adds (rays, C) gradients to the corners of a (R, R, C) plane."""
    value = exchanged(value)
    channel = tl.arange(0, C)
    aw, bw = line_pair(iw, fw, R, ACC)
    ah, bh = line_pair(ih, fh, R, ACC)
    w0, w1 = neighbours_again(iw, R)
    h0, h1 = neighbours_again(ih, R)
    for k in tl.static_range(4):
        w, sw = (w1, bw) if k % 2 else (w0, aw)
        h, sh = (h1, bh) if k // 2 else (h0, ah)
        share = sw * sh
        place = grad + ((h * R + w) * C)[:, None] + channel[None, :]
        mask = seen[:, None] & (channel < USED)[None, :]
        tl.atomic_add(place, share[:, None] * value, mask=mask, sem="relaxed")


@triton.jit
def plane_slopes(plane, value, iw, fw, ih, fh, seen, R, C: tl.constexpr, ACC: tl.constexpr):
    """Gradients of both coordinates, (rays,), by those of what was looked up, (rays, C)."""
    channel = tl.arange(0, C)
    aw, bw = line_pair(iw, fw, R, ACC)
    ah, bh = line_pair(ih, fh, R, ACC)
    daw, dbw = line_slopes(iw, R, ACC)
    dah, dbh = line_slopes(ih, R, ACC)
    gw, gh = tl.zeros_like(fw).to(ACC), tl.zeros_like(fw).to(ACC)
    w0, w1 = neighbours_again(iw, R)
    h0, h1 = neighbours_again(ih, R)
    for k in tl.static_range(4):
        w, sw, dw = (w1, bw, dbw) if k % 2 else (w0, aw, daw)
        h, sh, dh = (h1, bh, dbh) if k // 2 else (h0, ah, dah)
        place = plane + ((h * R + w) * C)[:, None] + channel[None, :]
        share = tl.sum(tl.load(place, mask=seen[:, None], other=0.0).to(ACC) * value, 1)
        gw += dw * sh * share
        gh += sw * dh * share
    return gw, gh


@triton.jit
def vector_colour(vector, i, f, seen, R, C: tl.constexpr, ACC: tl.constexpr):
    """Linear lookup of a (R, C) vector: (rays, C)."""
    channel = tl.arange(0, C)
    low, high = line_pair(i, f, R, ACC)
    i0, i1 = neighbours(i, R)
    below = tl.load(vector + (i0 * C)[:, None] + channel[None, :], mask=seen[:, None], other=0.0).to(ACC)
    above = tl.load(vector + (i1 * C)[:, None] + channel[None, :], mask=seen[:, None], other=0.0).to(ACC)
    return low[:, None] * below + high[:, None] * above


@triton.jit
def vector_colour_gradient(grad, value, i, f, seen, R, C: tl.constexpr, USED: tl.constexpr, ACC: tl.constexpr):
    """Adds (rays, C) gradients to both neighbours in a (R, C) vector."""
    value = exchanged(value)
    channel = tl.arange(0, C)
    low, high = line_pair(i, f, R, ACC)
    i0, i1 = neighbours_again(i, R)
    mask = seen[:, None] & (channel < USED)[None, :]
    tl.atomic_add(grad + (i0 * C)[:, None] + channel[None, :], low[:, None] * value, mask=mask, sem="relaxed")
    tl.atomic_add(grad + (i1 * C)[:, None] + channel[None, :], high[:, None] * value, mask=mask, sem="relaxed")


@triton.jit
def vector_colour_slope(vector, value, i, seen, R, C: tl.constexpr, ACC: tl.constexpr):
    """Gradient of the coordinate, (rays,), by that of what was looked up, (rays, C)."""
    channel = tl.arange(0, C)
    i0, i1 = neighbours_again(i, R)
    down, up = line_slopes(i, R, ACC)
    below = tl.load(vector + (i0 * C)[:, None] + channel[None, :], mask=seen[:, None], other=0.0).to(ACC)
    above = tl.load(vector + (i1 * C)[:, None] + channel[None, :], mask=seen[:, None], other=0.0).to(ACC)
    return tl.sum((down[:, None] * below + up[:, None] * above) * value, 1)


@triton.jit
def density_at(field, bias, ix, fx, iy, fy, iz, fz, R, VOLUME: tl.constexpr, ACC: tl.constexpr):
    """Density before its ReLU."""
    if VOLUME:
        y = volume_density(field, ix, fx, iy, fy, iz, fz, R, ACC)
    else:
        y = tl.load(bias).to(ACC) + plane_density(field, ix, fx, iy, fy, R, ACC)
        y += plane_density(field + R * R, iz, fz, ix, fx, R, ACC)
        y += plane_density(field + 2 * R * R, iy, fy, iz, fz, R, ACC)
    return y


@triton.jit
def density_slopes(field, value, ix, fx, iy, fy, iz, fz, R, VOLUME: tl.constexpr, ACC: tl.constexpr):
    """Gradients of x, y and z, (rays,), by that of density before its ReLU."""
    if VOLUME:
        gx, gy, gz = volume_slopes(field, value, ix, fx, iy, fy, iz, fz, R, ACC)
    else:
        seen, value = value != 0, value[:, None]  # planes of one channel
        xy_x, xy_y = plane_slopes(field, value, ix, fx, iy, fy, seen, R, 1, ACC)
        zx_z, zx_x = plane_slopes(field + R * R, value, iz, fz, ix, fx, seen, R, 1, ACC)
        yz_y, yz_z = plane_slopes(field + 2 * R * R, value, iy, fy, iz, fz, seen, R, 1, ACC)
        gx, gy, gz = xy_x + zx_x, xy_y + yz_y, zx_z + yz_z
    return gx, gy, gz
