"""What a photograph says of its own frustum: density pixel by pixel, and the colours that it shows.

NViST's grids are coarse, and all they hold has gone through a transformer's tokens. Most of what a camera near the
photograph's sees is in the photograph itself, sharp: a point's colour is that of the pixel it lies behind, unless
something lies before it (pixel-aligned colours: Yu et al., *pixelNeRF*, CVPR 2021). The grids keep what the photograph
does not show.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit.ops.render import Field

DENSITY_SCALE = 20.0
START = -3.0  # of the density's logit: a thin fog, through which gradients reach all depths
NEAREST = 0.02  # depth below which points are not told apart
MARGIN = 0.5  # how far beyond the image's edge its frustum fades out, in half widths or heights
FEATURES = 8


class Frustum(NamedTuple):
    """The frustums of B photographs; the camera stands at (0, 0, -distance) and looks along +z.

    volume: (B, 2, D, H, W), density, and the share of light that comes from there to the camera; D equal steps of depth
        from 0 to ``reach``.
    pixels: (B, 3 + FEATURES, H, W), colours in [0, 1], then features.
    camera: (B, 2), distance, and focal length / image height.
    box: half the side of the cube of the scene, which points are given in.
    """

    volume: Tensor
    pixels: Tensor
    camera: Tensor
    box: float

    @property
    def reach(self) -> float:
        """Depth of the far end."""
        return 2 * self.box

    def place(self, points: Tensor) -> Tensor:
        """(B, P, 3) points in [-1, 1]^3 -> column, row and depth, [-1, 1] within the frustum."""
        height, width = self.pixels.shape[-2:]
        points = points * self.box
        depth = points[..., 2] + self.camera[:, None, 0]
        scale = 2 * self.camera[:, None, 1] / depth.clamp_min(NEAREST)
        return torch.stack(
            [points[..., 0] * scale * (height / width), points[..., 1] * scale, depth / self.reach * 2 - 1], dim=-1
        )

    def look_up(self, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is known at places (B, P, 3): density and the share that the photograph sees, (B, P) each, and how
        far (0 to 1) the frustum is to be believed there."""
        density, light = _sample(self.volume, place[:, None, None])[..., 0, 0, :].unbind(1)
        beyond = (place[..., :2].abs() - 1).clamp_min(0).amax(dim=-1)
        believed = (1 - beyond / MARGIN).clamp_min(0)
        return density * believed, light * believed, believed

    def depth_error(self, depth: Tensor) -> Tensor:
        """How wrong the share of light is if these are the depths (B, H, W) of the pixels.

        Cross-entropy, mean over all cells: light reaches those before the surface, none those behind it.
        """
        density = self.volume[:, 0]
        step = self.reach / density.shape[1]
        before = optical_depth(density, step).clamp_min(1e-6)
        middle = (torch.arange(density.shape[1], device=depth.device) + 0.5) * step
        lit = ((depth[:, None] - middle[:, None, None]) / step + 0.5).clamp(0, 1)
        return (lit * before - (1 - lit) * torch.log(-torch.expm1(-before))).mean()


def optical_depth(density: Tensor, step: float) -> Tensor:
    """From the camera to the middles of the cells (B, D, H, W) of a frustum, ``step`` deep."""
    return (density.cumsum(dim=1) - density / 2) * step


def _sample(grid: Tensor, place: Tensor) -> Tensor:
    return F.grid_sample(grid, place, padding_mode="border", align_corners=False)


class FrustumHead(nn.Module):
    """Predicts frustums, and mixes their colours with a field's.

    Args:
        token_dim: width of the encoder's tokens.
        grid: rows and columns of them.
        depths: steps of depth.
        width: channels of the convolutions.
    """

    def __init__(self, token_dim: int, grid: tuple[int, int], depths: int, width: int = 32) -> None:
        super().__init__()
        self.grid = grid
        self.spread = nn.Linear(token_dim, 4 * width)
        self.detail = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, width, 3, padding=1))
        self.join = nn.Sequential(
            nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, depths + FEATURES, 1)
        )
        self.mix = nn.Sequential(nn.Linear(FEATURES + 9, 16), nn.GELU(), nn.Linear(16, 1))

    def forward(self, image: Tensor, tokens: Tensor, camera: Tensor, box: float) -> Frustum:
        """Photographs (B, 3, H, W) in [0, 1] and their patch tokens (B, L, D) -> their frustums."""
        coarse = self.spread(tokens).transpose(1, 2).unflatten(2, self.grid)
        coarse = F.interpolate(F.pixel_shuffle(coarse, 2), image.shape[-2:], mode="bilinear")
        joined = self.join(coarse + self.detail(image - 0.5)).float()
        logit, features = joined.split([joined.shape[1] - FEATURES, FEATURES], dim=1)
        density = DENSITY_SCALE * F.softplus(logit + START)
        light = torch.exp(-optical_depth(density, 2 * box / density.shape[1]))
        return Frustum(torch.stack([density, light], dim=1), torch.cat([image, features], dim=1), camera, box)

    def complete(self, field: Field, frustum: Frustum) -> Field:
        """The field of a frustum where the photograph looks, and of ``field`` where it does not.

        A point that the photograph sees is empty or a surface, whatever ``field`` says of it.
        """

        def density(points: Tensor) -> Tensor:
            own, light, _ = frustum.look_up(frustum.place(points))
            return own + (1 - light) * field.density(points)

        def colour(points: Tensor, directions: Tensor) -> Tensor:
            place = frustum.place(points)
            other = field.colour(points, directions)
            pixels = _sample(frustum.pixels, place[:, None, :, :2])[:, :, 0].transpose(1, 2)
            own, features = pixels[..., :3], pixels[..., 3:]
            _, light, believed = frustum.look_up(place)
            known = torch.stack([light, believed, place[..., 2]], dim=-1)
            share = self.mix(torch.cat([features, known, own, other], dim=-1)).sigmoid()
            return torch.lerp(other, own, share)

        return Field(density, colour)
