"""One capture's radiance field: NViST's vector-matrix in space that is warped axis by axis."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit.nvs.cameras import Camera
from visionkit.nvs.field import FieldRenderer
from visionkit.nvs.fit_rays import Bounds, Rays
from visionkit.ops.render import Field, composite_weights, density_volume, lookup_volume, vector_matrix_features

if TYPE_CHECKING:
    from visionkit.nvs.fit import Settings

DENSITY_SCALE = 25.0
START = -0.15  # density's value before training, see SceneField.field


class Grid(nn.Module):
    """Planes (3, 1, C, R, R) and vectors (3, 1, C, R, 1), see [visionkit.ops.render]."""

    def __init__(self, side: int, channels: int, spread: float) -> None:
        super().__init__()
        self.planes = nn.Parameter(spread * torch.randn(3, 1, channels, side, side))
        self.vectors = nn.Parameter(spread * torch.randn(3, 1, channels, side, 1))

    def grow(self, side: int) -> None:
        """The same function on a finer grid."""
        for name, shape in (("planes", (side, side)), ("vectors", (side, 1))):
            fine = F.interpolate(getattr(self, name).data[:, 0], shape, mode="bilinear")
            setattr(self, name, nn.Parameter(fine[:, None]))

    def roughness(self) -> Tensor:
        """Mean squared difference of neighbouring cells, a scalar."""
        planes = self.planes.diff(dim=-1).square().mean() + self.planes.diff(dim=-2).square().mean()
        return planes + self.vectors.diff(dim=-2).square().mean()


class SceneField(nn.Module):
    """A capture's radiance field: density and colour in grids of their own, and NViST's small colour network.

    Args:
        settings: sizes of the grids and of the colour network, and their start.
        bounds: where the capture's content lies.
        views: number of photographs to fit; each gets an exposure of its own.
    """

    def __init__(self, settings: "Settings", bounds: Bounds, views: int) -> None:
        super().__init__()
        self.settings, self.bounds = settings, bounds
        shrink = 2 ** len(settings.growth)
        self.density_grid = Grid(settings.density // shrink, settings.channels[0], 0.1)
        self.colour_grid = Grid(settings.colour // shrink, settings.channels[1], 0.3)
        self.net = FieldRenderer("vector_matrix", *settings.channels, settings.width, 0, "learned")
        self.exposure = nn.Parameter(torch.zeros(views, 2, 3))

    def grow(self, stage: int) -> None:
        """Doubles the grids for the ``stage``-th time."""
        shrink = 2 ** (len(self.settings.growth) - stage)
        self.density_grid.grow(self.settings.density // shrink)
        self.colour_grid.grow(self.settings.colour // shrink)

    def field(self) -> Field:
        """The field in the grid's coordinates, whose colour is the same from all sides: few views tell no more."""
        volume = density_volume(self.density_grid.planes, self.density_grid.vectors)

        def density(points: Tensor) -> Tensor:
            # Softplus, nearly a ReLU, keeps a gradient where nothing is yet.
            return DENSITY_SCALE * F.softplus(lookup_volume(volume, points) + START, beta=10)

        def colour(points: Tensor, directions: Tensor) -> Tensor:
            features = vector_matrix_features(self.colour_grid.planes, self.colour_grid.vectors, points)
            return self.net.network.rgb(features.flatten(2), torch.zeros_like(directions))

        return Field(density, colour)

    def weights(self, field: Field, rays: Rays, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points in the grid (R, N, 3), distances (R, N) and weights (R, N) along rays."""
        middle = (edges[:, 1:] + edges[:, :-1]) / 2
        points = self.bounds.warp(rays.origins[:, None] + rays.directions[:, None] * middle[..., None])
        sigma = field.density(points.view(1, -1, 3)).view(middle.shape)
        return points, middle, composite_weights(sigma, edges)

    def shade(self, field: Field, rays: Rays, points: Tensor, weights: Tensor) -> Tensor:
        """Colours (R, 3): the heaviest samples stand for all, a colour of the world's end for what is missing."""
        opacity = weights.sum(dim=1, keepdim=True)
        heavy, sample = weights.topk(min(self.settings.coloured, weights.shape[1]), dim=1)
        chosen = points.gather(1, sample[..., None].expand(-1, -1, 3))
        seen = heavy.detach() > 1e-3
        ray = seen.nonzero()[:, 0]
        colour = field.colour(chosen[seen][None], rays.directions[ray][None])[0]
        rgb = torch.zeros_like(rays.rgb).index_add(0, ray, colour * heavy[seen][:, None])
        share = opacity / (heavy * seen).sum(dim=1, keepdim=True).clamp_min(1e-3)
        return rgb * share + (1 - opacity) * self.net.background

    @torch.no_grad()
    def render(self, camera: Camera, chunk: int = 8192) -> tuple[np.ndarray, np.ndarray]:
        """A view: (H, W, 3) in [0, 1] and distances (H, W) in world units."""
        field, rgb, depth = self.field(), [], []
        origins, directions = camera.rays(self.bounds.centre.device)
        for start in range(0, len(origins), chunk):
            part = slice(start, start + chunk)
            rays = Rays(origins[part], directions[part], torch.zeros_like(origins[part]), None)
            edges = self.bounds.edges(len(rays.origins), 2 * self.settings.samples)
            points, middle, weights = self.weights(field, rays, edges)
            rgb.append(self.shade(field, rays, points, weights).clamp(0, 1))
            depth.append((weights * middle).sum(1) + (1 - weights.sum(1)) * self.bounds.far)
        return torch.cat(rgb).view(*camera.size, 3).cpu().numpy(), torch.cat(depth).view(camera.size).cpu().numpy()
