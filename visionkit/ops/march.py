"""Whole renderings of factorised fields as functions of their tensors, which a kernel can do in one pass.

The PyTorch form is made of [visionkit.ops.render]'s parts; ``visionkit_kernels.march`` is the second.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.ops import dispatch
from visionkit.ops.precision import product_dtype, wide, without_autocast
from visionkit.ops.render import (
    Rendering,
    check_jitter,
    cp_field,
    density_volume,
    ray_edges,
    render_rays_in_chunks,
    triplane_field,
    vector_matrix_field,
)


class ColourNetwork(NamedTuple):
    """NViST's colour network as tensors, for F features and K frequencies of directions:

    rgb = sigmoid(W3 gelu(W2 [gelu(W1 gelu(f) + b1), sin 2^k d, cos 2^k d, d] + b2) + b3)

    weight1 (H, F), bias1 (H,), weight2 (H, H + 6 K + 3), bias2 (H,), weight3 (3, H), bias3 (3,).

    Not called itself: torch.compile does not know of tuples that can be, at least until torch 2.9.
    """

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor
    weight3: Tensor
    bias3: Tensor

    def rgb(self, features: Tensor, directions: Tensor) -> Tensor:
        """(..., F) features, (..., 3) unit directions -> (..., 3) in [0, 1]."""
        hidden = F.gelu(F.linear(F.gelu(features), self.weight1, self.bias1))
        frequencies = (self.weight2.shape[1] - self.weight1.shape[0] - 3) // 6
        seen_from = direction_features(directions, frequencies)
        inner = F.linear(torch.cat([hidden, seen_from, directions], dim=-1), self.weight2, self.bias2)
        return F.linear(F.gelu(inner), self.weight3, self.bias3).sigmoid()


def direction_features(directions: Tensor, num_frequencies: int) -> Tensor:
    """The sines, then the cosines of 2^k d, k = 0, 1, ...; no pi here: (..., 3) -> (..., 6 * K)."""
    scale = 2.0 ** torch.arange(num_frequencies, device=directions.device, dtype=directions.dtype)
    angle = (directions[..., None] * scale).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def render_vector_matrix(
    planes: Tensor,
    vectors: Tensor,
    network: ColourNetwork,
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    aabb: Tensor,
    *,
    sigma_dim: int,
    num_samples: int,
    seed: Tensor | None = None,
    jitter: str = "ray",
    background: Tensor | None = None,
    min_weight: float = 0.0,
    chunk: int = 4096,
    ray_gradients: bool = False,
    keep_weights: bool = False,
) -> Rendering:
    """Renders rays through vector-matrix fields of B scenes (TensoRF, arXiv 2203.09517; NViST, arXiv 2312.08568).

    Memory beside inputs and outputs does not grow with the number of samples times the number of rays.

    Args:
        planes: (3, B, C, R, R), the first ``sigma_dim`` channels density, the others colour.
        vectors: (3, B, C, R, 1).
        network: colour network of 3 * (C - sigma_dim) features.
        origins, directions: (B, rays, 3), unit directions.
        near, far: distances, broadcast with (B, rays).
        aabb: (2, 3), the corners of the grids.
        sigma_dim: channels of density.
        num_samples: intervals along a ray.
        seed: moves the edges of the intervals at random; see [ray_edges].
        jitter: ``"ray"``, each ray's on their own, ``"shared"``, all alike, or None, which moves none.
        background: colour behind everything, broadcasts with (B, rays, 3); None is black.
        min_weight: colours of samples of at most this weight are left out.
        chunk: rays of each scene that the PyTorch form renders at a time.
        ray_gradients: whether gradients flow to origins, directions, near and far.
        keep_weights: return weights and edges too, which the PyTorch form alone does.

    Returns:
        A [Rendering], without weights and edges unless they are asked for.
    """
    check_jitter(jitter)
    rays = _rays(origins, directions, near, far, ray_gradients)
    if kernel := _kernel(planes, network, keep_weights, *rays):
        with without_autocast(planes):
            field = density_volume(*wide(planes[:, :, :sigma_dim], vectors[:, :, :sigma_dim]))[:, 0]
        colours = (x[:, :, sigma_dim:].to(product_dtype(x)) for x in (planes, vectors))
        options = dict(num_samples=num_samples, min_weight=min_weight, **_noise(seed, jitter))
        return _on(background, kernel(field, None, *colours, network, *rays, aabb, **options))
    with without_autocast(planes):  # as the kernel: of its products only the colours' are taken in half precision
        field = vector_matrix_field(planes, vectors, sigma_dim, network.rgb, dense=True)
    options = dict(background=background, min_weight=min_weight, chunk=chunk, ray_gradients=ray_gradients)
    edges = edges_along(origins, near, far, num_samples, seed, jitter)
    return render_rays_in_chunks(field, origins, directions, edges, aabb, keep_weights=keep_weights, **options)


def render_triplanes(
    planes: Tensor,
    density: tuple[Tensor, Tensor],
    network: ColourNetwork,
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    aabb: Tensor,
    *,
    sigma_dim: int,
    num_samples: int,
    seed: Tensor | None = None,
    jitter: str = "ray",
    background: Tensor | None = None,
    min_weight: float = 0.0,
    chunk: int = 4096,
    ray_gradients: bool = False,
    keep_weights: bool = False,
) -> Rendering:
    """Renders rays through tri-plane fields of B scenes (EG3D, arXiv 2112.07945).

    Args:
        density: weight (1, 3 * sigma_dim) and bias (1,) of the layer that makes density of the planes' channels.
        planes, network and the others: see [render_vector_matrix].
    """
    check_jitter(jitter)
    weight, bias = density
    rays = _rays(origins, directions, near, far, ray_gradients)
    if kernel := _kernel(planes, network, keep_weights, *rays):
        with without_autocast(planes):  # lookup and layer are both linear: one channel a plane is enough
            channels, shares = wide(planes[:, :, :sigma_dim], weight.view(3, sigma_dim))
            field = torch.einsum("pbchw,pc->bphw", channels, shares)
        options = dict(num_samples=num_samples, min_weight=min_weight, **_noise(seed, jitter))
        colours = planes[:, :, sigma_dim:].to(product_dtype(planes))
        return _on(background, kernel(field, bias, colours, None, network, *rays, aabb, **options))

    def lift(features: Tensor) -> Tensor:
        with without_autocast(features):  # as the kernel
            return F.linear(features, weight, bias)

    field = triplane_field(planes, sigma_dim, lift, network.rgb)
    options = dict(background=background, min_weight=min_weight, chunk=chunk, ray_gradients=ray_gradients)
    edges = edges_along(origins, near, far, num_samples, seed, jitter)
    return render_rays_in_chunks(field, origins, directions, edges, aabb, keep_weights=keep_weights, **options)


def render_cp(
    vectors: Tensor,
    network: ColourNetwork,
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    aabb: Tensor,
    *,
    sigma_dim: int,
    num_samples: int,
    seed: Tensor | None = None,
    jitter: str = "ray",
    chunk: int = 4096,
    **options: object,
) -> Rendering:
    """Renders rays through CP fields of B scenes (TensoRF, arXiv 2203.09517, equation 3); no kernel does.

    Args:
        vectors: (3, B, C, R, 1), the first ``sigma_dim`` channels density, the others colour.
        network: colour network of C - sigma_dim features.
        options: ``background``, ``min_weight``, ``ray_gradients`` and ``keep_weights``.
        origins and the others: see [render_vector_matrix].
    """
    check_jitter(jitter)
    field = cp_field(vectors, sigma_dim, network.rgb)
    edges = edges_along(origins, near, far, num_samples, seed, jitter)
    return render_rays_in_chunks(field, origins, directions, edges, aabb, chunk=chunk, **options)


def _rays(origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, gradients: bool) -> tuple[Tensor, ...]:
    """The same as tensors, through which gradients flow only if they are to."""
    ends = (x if isinstance(x, Tensor) else origins.new_tensor(x) for x in (near, far))
    return tuple(x if gradients else x.detach() for x in (origins, directions, *ends))


def _noise(seed: Tensor | None, jitter: str | None) -> dict:
    """Of the edges, as the kernel takes it."""
    return dict(seed=seed if jitter else None, shared=jitter == "shared")


def _kernel(planes: Tensor, network: ColourNetwork, keep_weights: bool, *rays: Tensor) -> Callable | None:
    """The kernel, if there is one; none keeps weights."""
    return None if keep_weights else dispatch.kernel("march_rays", planes, network.weight1, network.weight2, *rays)


def _on(background: Tensor | None, seen: tuple[Tensor, ...]) -> Rendering:
    rgb, depth, opacity, distortion = seen
    if background is not None:
        rgb = rgb + (1 - opacity)[..., None] * background
    return Rendering(rgb, depth, opacity, distortion)


def edges_along(
    origins: Tensor, near: Tensor, far: Tensor, num_samples: int, seed: Tensor | None, jitter: str
) -> Callable[[slice], Tensor]:
    """A function from a slice of rays to their [ray_edges], (B, rays, num_samples + 1); without a seed even ones."""
    return lambda rays: ray_edges(near, far, num_samples, origins, None if seed is None else jitter, seed, rays)
