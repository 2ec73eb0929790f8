"""Rendering of factorised radiance fields: vector-matrix, tri-plane and CP grids, seen along rays.

Each function reads like its formula. Shapes: ``B`` scenes, ``R`` rays each, ``N`` intervals a ray, ``C`` channels.
Grids live on the box [-1, 1]^3 in cells whose centres are the values (``align_corners=False``) and are zero outside.
A plane's last axis runs along the first letter of its name.

| index | plane axes | vector axis |
|---|---|---|
| 0 | (x, y) | z |
| 1 | (z, x) | y |
| 2 | (y, z) | x |
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from visionkit.errors import VisionKitError
from visionkit.extras import require

PLANE_AXES = ((0, 1), (2, 0), (1, 2))
VECTOR_AXIS = (2, 1, 0)
JITTERS = (None, "ray", "shared")


class Rendering(NamedTuple):
    """What rays see. ``depth`` is the weighted sum of distances, not divided by ``opacity``.

    rgb (B, R, 3); depth, opacity and distortion (B, R); weights (B, R, N) and edges (B, R, N + 1), or None.
    """

    rgb: Tensor
    depth: Tensor
    opacity: Tensor
    distortion: Tensor
    weights: Tensor | None = None
    edges: Tensor | None = None


class Field(NamedTuple):
    """A radiance field as two functions of points in [-1, 1]^3.

    density: (B, P, 3) points -> (B, P), at least 0.
    colour: (B, P, 3) points, (B, P, 3) unit directions -> (B, P, 3).
    """

    density: Callable[[Tensor], Tensor]
    colour: Callable[[Tensor, Tensor], Tensor]


def ray_edges(
    near: Tensor | float,
    far: Tensor | float,
    num_samples: int,
    origins: Tensor,
    jitter: str | None = None,
    seed: Tensor | None = None,
    rays: slice = slice(None),
) -> Tensor:
    """Edges of the sampling intervals along each ray.

    Args:
        near, far: distances; numbers or tensors that broadcast with (B, R).
        num_samples: number of intervals.
        origins: (B, R, 3), for shape, type and device.
        jitter: None for even edges; ``"ray"`` moves all edges but the last by U(0, 1) of an interval, every ray on its
            own; ``"shared"`` moves those of all rays alike (the released code).
        seed: a whole number as a tensor of no dimension, of which the noise is a function; by default it is drawn.
        rays: the rays of every scene that edges are wanted of; with one seed they are the same as among all.

    Returns:
        (B, R, num_samples + 1), R as many as ``rays`` says.
    """
    check_jitter(jitter)
    batch, count = origins.shape[:2]
    near = torch.as_tensor(near, dtype=origins.dtype, device=origins.device).expand(batch, count)[:, rays, None]
    far = torch.as_tensor(far, dtype=origins.dtype, device=origins.device).expand(batch, count)[:, rays, None]
    step = torch.arange(num_samples + 1, dtype=origins.dtype, device=origins.device)
    if jitter is not None:
        seed = torch.randint(2**31, (), device=origins.device) if seed is None else seed
        number = torch.arange(batch * count if jitter == "ray" else 1, device=origins.device)
        number = number.view(batch, count)[:, rays] if jitter == "ray" else number
        step = step + F.pad(ray_noise(seed, number, num_samples, origins.dtype), (0, 1))
    return near + (far - near) * (step / num_samples)


def check_jitter(jitter: str | None) -> None:
    """Raises VisionKitError for an unknown one."""
    if jitter not in JITTERS:
        raise VisionKitError(f"jitter={jitter!r}: expected 'ray', 'shared' or None")


def ray_noise(seed: Tensor, rays: Tensor, num_samples: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """U(0, 1) for each interval of each ray, a function of the three numbers that a kernel can count out again.

    Args:
        seed: a whole number, a tensor of no dimension.
        rays: numbers of the rays, of any shape (...).
        num_samples: number of intervals along a ray.
        dtype: type of the result, whose values have 24 bits.

    Returns:
        (..., num_samples).
    """
    sample = torch.arange(num_samples, device=seed.device)
    key = _scramble((seed & 0xFFFFFFFF) ^ _scramble(rays))
    return (_scramble((key[..., None] + sample) & 0xFFFFFFFF) >> 8).to(dtype) / 2**24


def _scramble(x: Tensor) -> Tensor:
    """A hash of 32 bits, kept in int64 (Wellons' lowbias32)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def lookup_planes(planes: Tensor, points: Tensor) -> Tensor:
    """Bilinear lookup of three planes.

    Args:
        planes: (3, B, C, H, W).
        points: (B, P, 3).

    Returns:
        (B, P, 3, C).
    """
    values = [
        F.grid_sample(plane, points[:, None, :, axes], mode="bilinear", padding_mode="zeros", align_corners=False)
        for plane, axes in zip(planes, PLANE_AXES)
    ]
    return torch.stack([value[:, :, 0].transpose(1, 2) for value in values], dim=2)


def lookup_vectors(vectors: Tensor, points: Tensor) -> Tensor:
    """Linear lookup of three vectors: (3, B, C, H, 1), (B, P, 3) -> (B, P, 3, C)."""
    values = []
    for vector, axis in zip(vectors, VECTOR_AXIS):
        along = points[:, None, :, axis]
        grid = torch.stack([torch.zeros_like(along), along], dim=-1)
        values.append(F.grid_sample(vector, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    return torch.stack([value[:, :, 0].transpose(1, 2) for value in values], dim=2)


def vector_matrix_features(planes: Tensor, vectors: Tensor, points: Tensor) -> Tensor:
    """Plane times vector, three of them (TensoRF, equation 8): -> (B, P, 3, C)."""
    return lookup_planes(planes, points) * lookup_vectors(vectors, points)


class FeatureTable:
    """[vector_matrix_features], flat, for many points of the same grids.

    The channels of a cell lie side by side here, so that a point reads few runs of memory and not C scattered numbers.

    Args:
        planes: (3, B, C, R, R).
        vectors: (3, B, C, R, 1).
    """

    def __init__(self, planes: Tensor, vectors: Tensor) -> None:
        self.size = planes.shape[-1]
        self.planes, self.vectors = (each.movedim(2, -1).flatten(0, -2) for each in (planes, vectors))

    def __call__(self, points: Tensor) -> Tensor:
        """(B, P, 3) -> (B, P, 3 * C)."""
        cells, shares = self._neighbours(points.movedim(-1, 0))
        x, y = (list(axes) for axes in zip(*PLANE_AXES))
        z = list(VECTOR_AXIS)
        # where the cells of each plane and scene begin, in rows of ``size``
        first = torch.arange(3 * len(points), dtype=cells.dtype, device=cells.device).view(3, -1, 1, 1) * self.size
        corners = (first + cells[y])[..., None] * self.size + cells[x][..., None, :]
        weights = shares[y][..., None] * shares[x][..., None, :]
        on_planes = _blend(self.planes, corners.flatten(-2), weights.flatten(-2))
        features = on_planes * _blend(self.vectors, first + cells[z], shares[z])
        return features.view(3, *points.shape[:2], -1).movedim(0, 2).flatten(2)

    def _neighbours(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """The two nearest cells of coordinates and their shares, (..., 2) each; outside there is nothing."""
        place = (coordinates + 1) * (self.size / 2) - 0.5
        below = place.floor()
        cells = torch.stack([below, below + 1], dim=-1)
        shares = 1 - (place[..., None] - cells).abs()
        inside = (cells >= 0) & (cells < self.size)
        return cells.clamp(0, self.size - 1).int(), shares * inside


def _blend(rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of rows: (M, C), (..., K) and (..., K) -> (N, C)."""
    count = index.shape[-1]
    weight = weight.reshape(-1, count).to(rows.dtype)
    return F.embedding_bag(index.reshape(-1, count), rows, mode="sum", per_sample_weights=weight)


def cp_features(vectors: Tensor, points: Tensor) -> Tensor:
    """Product of the three vectors (TensoRF, equation 3): -> (B, P, 1, C)."""
    return lookup_vectors(vectors, points).prod(dim=2, keepdim=True)


def composite_weights(sigma: Tensor, edges: Tensor) -> Tensor:
    """Share of each interval in what the ray sees: alpha_i times the light that reaches it.

    Args:
        sigma: (..., N) density, at least 0.
        edges: (..., N + 1).

    Returns:
        (..., N) weights that sum to at most 1.
    """
    nerfacc = require("nerfacc", "nvs")
    shape = sigma.shape
    sigma, edges = sigma.reshape(-1, shape[-1]), edges.reshape(-1, shape[-1] + 1)
    weights, _, _ = nerfacc.render_weight_from_density(edges[:, :-1], edges[:, 1:], sigma)
    return weights.reshape(shape)


def distortion_loss(weights: Tensor, edges: Tensor) -> Tensor:
    """How spread out the weights of a ray are (mip-NeRF 360, equation 15), in O(N).

    Args:
        weights: (..., N).
        edges: (..., N + 1), in scene units.

    Returns:
        (...): per ray, 1/3 sum_i d_i w_i^2 + 2 sum_i w_i (m_i W_i - M_i) with W_i, M_i the sums of w and w m before i.
    """
    width = edges.diff(dim=-1)
    middle = (edges[..., 1:] + edges[..., :-1]) / 2
    moment = weights * middle
    weight_before = weights.cumsum(dim=-1) - weights
    moment_before = moment.cumsum(dim=-1) - moment
    own = (width * weights.square()).sum(dim=-1) / 3
    return own + 2 * (weights * (middle * weight_before - moment_before)).sum(dim=-1)


def vector_matrix_field(
    planes: Tensor, vectors: Tensor, sigma_dim: int, colour: Callable, dense: bool = False
) -> Field:
    """NViST's field: the first ``sigma_dim`` channels are density, the rest colour.

    sigma = ReLU(sum over planes and channels of plane * vector).

    Args:
        planes: (3, B, C, R, R).
        vectors: (3, B, C, R, 1).
        sigma_dim: channels of density.
        colour: network ((B, P, 3 * (C - sigma_dim)), (B, P, 3) directions) -> (B, P, 3).
        dense: look the density up in the (R, R, R) grid of the summed products. Bilinear times linear is trilinear, so
            this is the same function, and one lookup instead of 6 * ``sigma_dim``; and colours in a [FeatureTable].
    """

    sigma = planes[:, :, :sigma_dim], vectors[:, :, :sigma_dim]
    rgb = planes[:, :, sigma_dim:], vectors[:, :, sigma_dim:]
    if dense:
        volume, table = density_volume(*sigma), FeatureTable(*rgb)
        return Field(
            lambda points: lookup_volume(volume, points).relu(),
            lambda points, directions: colour(table(points), directions),
        )
    return Field(
        lambda points: vector_matrix_features(*sigma, points).sum(dim=(2, 3)).relu(),
        lambda points, directions: colour(vector_matrix_features(*rgb, points).flatten(2), directions),
    )


def triplane_field(planes: Tensor, sigma_dim: int, density_net: Callable, colour: Callable) -> Field:
    """Tri-plane field: sigma = ReLU(linear(the planes' density channels side by side)).

    Args:
        planes: (3, B, C, R, R).
        sigma_dim: channels of density.
        density_net: (B, P, 3 * sigma_dim) -> (B, P, 1).
        colour: network ((B, P, 3 * (C - sigma_dim)), (B, P, 3) directions) -> (B, P, 3).
    """

    def density(points: Tensor) -> Tensor:
        return density_net(lookup_planes(planes[:, :, :sigma_dim], points).flatten(2))[..., 0].relu()

    def field_colour(points: Tensor, directions: Tensor) -> Tensor:
        return colour(lookup_planes(planes[:, :, sigma_dim:], points).flatten(2), directions)

    return Field(density, field_colour)


def cp_field(vectors: Tensor, sigma_dim: int, colour: Callable) -> Field:
    """CP field: sigma = ReLU(sum over channels of the product of three vectors).

    ``colour`` gets (B, P, C - sigma_dim) products and (B, P, 3) directions.
    """

    def density(points: Tensor) -> Tensor:
        return cp_features(vectors[:, :, :sigma_dim], points).sum(dim=(2, 3)).relu()

    def field_colour(points: Tensor, directions: Tensor) -> Tensor:
        return colour(cp_features(vectors[:, :, sigma_dim:], points).flatten(2), directions)

    return Field(density, field_colour)


def density_volume(planes: Tensor, vectors: Tensor) -> Tensor:
    """Sum over planes and channels of plane times vector at every cell: -> (B, 1, R, R, R), axes z, y, x."""
    xy, zx, yz = planes
    z, y, x = vectors[..., 0]
    volume = torch.einsum("bcyx,bcz->bzyx", xy, z)
    volume = volume + torch.einsum("bcxz,bcy->bzyx", zx, y)
    volume = volume + torch.einsum("bczy,bcx->bzyx", yz, x)
    return volume[:, None]


def lookup_volume(volume: Tensor, points: Tensor) -> Tensor:
    """Trilinear lookup: (B, 1, D, H, W), (B, P, 3) -> (B, P)."""
    values = F.grid_sample(volume, points[:, None, None], padding_mode="zeros", align_corners=False)
    return values[:, 0, 0, 0]


def render_rays(
    field: Field,
    origins: Tensor,
    directions: Tensor,
    edges: Tensor,
    aabb: Tensor,
    *,
    background: Tensor | None = None,
    min_weight: float = 0.0,
    keep_weights: bool = False,
    ray_gradients: bool = False,
) -> Rendering:
    """Renders all rays in one piece.

    Colours are computed only where the weight exceeds ``min_weight``. With 0 that is exact, gradients included, for a
    density that is flat where it is zero (ReLU) and intervals that are not empty.

    Args:
        field: the density and colour functions.
        origins, directions: (B, R, 3), unit directions.
        edges: (B, R, N + 1), see [ray_edges].
        aabb: (2, 3), the corners that [-1, 1]^3 stands for.
        background: colour behind everything, broadcasts with (B, R, 3); None is black.
        min_weight: weight up to which a sample gets no colour, as above.
        keep_weights: return weights and edges too.
        ray_gradients: whether gradients flow to origins, directions and edges, and so to near and far.
    """
    if not ray_gradients:
        origins, directions, edges = origins.detach(), directions.detach(), edges.detach()
    batch, rays, samples = edges.shape[0], edges.shape[1], edges.shape[2] - 1
    middle = (edges[..., 1:] + edges[..., :-1]) / 2
    scale = 2 / (aabb[1] - aabb[0])
    start, step = (origins - aabb[0]) * scale - 1, directions * scale
    points = torch.addcmul(start[:, :, None], step[:, :, None], middle[..., None])
    points = points.reshape(batch, rays * samples, 3)
    weights = composite_weights(field.density(points).reshape(batch, rays, samples), edges)

    rgb = _seen_colours(field, points.view(batch, rays, samples, 3), directions, weights, min_weight)
    opacity = weights.sum(dim=-1)
    if background is not None:
        rgb = rgb + (1 - opacity)[..., None] * background
    return Rendering(
        rgb,
        (weights * middle).sum(dim=-1),
        opacity,
        distortion_loss(weights, edges),
        weights if keep_weights else None,
        edges if keep_weights else None,
    )


def _seen_colours(field: Field, points: Tensor, directions: Tensor, weights: Tensor, min_weight: float) -> Tensor:
    """Weighted sums of colours along rays (B, R, 3), taken at those of the points (B, R, N, 3) alone that are seen."""
    batch, rays, _ = weights.shape
    seen = weights.detach() > min_weight
    scene, ray, sample = seen.nonzero(as_tuple=True)
    # The seen samples of every scene, side by side and padded to the longest list.
    count = seen.sum(dim=(1, 2))
    slot = torch.arange(len(scene), device=scene.device) - (count.cumsum(0) - count)[scene]
    empty = points.new_zeros(batch, max(1, int(count.max())), 3)
    seen_points = empty.index_put((scene, slot), points[scene, ray, sample])
    seen_directions = empty.index_put((scene, slot), directions[scene, ray].to(empty.dtype))
    colour = field.colour(seen_points, seen_directions)[scene, slot].to(weights.dtype)
    weighted = colour * weights[scene, ray, sample][:, None]
    return weights.new_zeros(batch * rays, 3).index_add(0, scene * rays + ray, weighted).view(batch, rays, 3)


def render_rays_in_chunks(
    field: Field,
    origins: Tensor,
    directions: Tensor,
    edges: Tensor | Callable[[slice], Tensor],
    aabb: Tensor,
    *,
    chunk: int,
    **options: object,
) -> Rendering:
    """[render_rays] over ``chunk`` rays of every scene at a time; shapes as there.

    ``edges`` may be a function from a slice of rays to their edges, so that not all lie in memory at once.

    With gradients and several chunks each is recomputed in the backward pass, so that what is kept per ray does not
    grow with the number of samples (unless ``keep_weights`` asks for it). A single one would be kept whole anyway.
    """
    edges_of = edges if callable(edges) else lambda rays: edges[:, rays]
    several = origins.shape[1] > chunk
    background = options.pop("background", None)
    parts = []
    for start in range(0, max(1, origins.shape[1]), chunk):
        rays = slice(start, start + chunk)
        per_ray = background is not None and background.dim() > 1 and background.shape[-2] > 1
        behind = background[..., rays, :] if per_ray else background
        arguments = (field, origins[:, rays], directions[:, rays], edges_of(rays), aabb)
        options_here = dict(options, background=behind)
        if several and torch.is_grad_enabled():
            parts.append(checkpoint(render_rays, *arguments, use_reentrant=False, **options_here))
        else:
            parts.append(render_rays(*arguments, **options_here))
    return Rendering(*(None if part[0] is None else torch.cat(part, dim=1) for part in zip(*parts)))
