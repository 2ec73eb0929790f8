"""What a photograph says of its own frustum: density pixel by pixel, and the colours that it shows.

NViST's grids are coarse, and all they hold has gone through a transformer's tokens. Most of what a camera near the
photograph's sees is in the photograph itself, sharp: a point's colour is that of the pixel it lies behind, unless
something lies before it (pixel-aligned colours: Yu et al., *pixelNeRF*, CVPR 2021). The grids keep what the photograph
does not show, beside a guess of the head's at the colours that lie right behind those it shows.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit.ops.render import Field

REACH = 2.5  # depth of the far end, in distances of the camera from the scene
DENSITY_SCALE = 32.0  # of densities as shares of the reach: light then falls alike in small and in large scenes
START = -3.0  # of the density's logit: a thin fog, through which gradients reach all depths
NEAREST = 0.02  # depth below which points are not told apart
MARGIN = 0.5  # how far beyond the image's edge its frustum fades out, in half widths or heights
FEATURES = 5
WIDTHS = 32, 64, 128  # of the U-Net, at 1/2, 1/4 and 1/8 of the photograph's size
BLOCKS = 1, 2, 3  # residual blocks there, the first two numbers on the way down and again on the way up
FINE = 24  # channels at the photograph's own size, for outlines
GROUPS = 8  # of channels normalised together


class Frustum(NamedTuple):
    """The frustums of B photographs; the camera stands at (0, 0, -distance) and looks along +z.

    All lengths follow from the distance: one photograph does not tell a large scene from a small one.

    volume: (B, 2, D, H, W), density, and the share of light that comes from there to the camera; D equal steps of depth
        from 0 to ``reach``.
    pixels: (B, 6 + FEATURES, H, W), colours in [0, 1], a guess at those of what they hide, then features.
    camera: (B, 2), distance, and focal length / image height.
    box: half the side of the cube of the scene, which points are given in.
    """

    volume: Tensor
    pixels: Tensor
    camera: Tensor
    box: float

    @property
    def reach(self) -> Tensor:
        """(B,): depth of the far end."""
        return reach_of(self.camera)

    def place(self, points: Tensor) -> Tensor:
        """(B, P, 3) points in [-1, 1]^3 -> column, row and depth, [-1, 1] within the frustum."""
        height, width = self.pixels.shape[-2:]
        points = points * self.box
        depth = points[..., 2] + self.camera[:, None, 0]
        scale = 2 * self.camera[:, None, 1] / depth.clamp_min(NEAREST)
        return torch.stack(
            [points[..., 0] * scale * (height / width), points[..., 1] * scale, depth / self.reach[:, None] * 2 - 1],
            dim=-1,
        )

    def look_up(self, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is known at places (B, P, 3): density and the share that the photograph sees, (B, P) each, and how
        far (0 to 1) the frustum is to be believed there."""
        density, light = _sample(self.volume, place[:, None, None])[..., 0, 0, :].unbind(1)
        beyond = (place[..., :2].abs() - 1).clamp_min(0).amax(dim=-1)
        believed = (1 - beyond / MARGIN).clamp_min(0)
        return density * believed, light * believed, believed

    def depth(self) -> Tensor:
        """(B, H, W): how deep light reaches, in the mean."""
        return self.volume[:, 1].mean(dim=1) * self.reach[:, None, None]


def reach_of(camera: Tensor) -> Tensor:
    """(B,): depth of the far end of the frustums of cameras (B, 2), see [Frustum]."""
    return REACH * camera[:, 0]


def density_of(logit: Tensor, reach: Tensor) -> Tensor:
    """The densities that a head's logits (B, D, H, W) stand for."""
    return DENSITY_SCALE * F.softplus(logit + START) / reach[:, None, None, None]


def one_pixel_in_four() -> tuple:
    """Index of every other row and column of (..., H, W), from a random one of the first two."""
    top, left = torch.randint(2, (2,)).tolist()
    return ..., slice(top, None, 2), slice(left, None, 2)


def depth_error(density: Tensor, depth: Tensor, reach: Tensor) -> Tensor:
    """How wrong the light of densities (B, D, H, W) is if the pixels' depths are these (B, H, W).

    Cross-entropy, mean over all cells: light reaches those before the surface, none those behind it.
    """
    before = optical_depth(density, reach).clamp_min(1e-6)
    cell = torch.arange(density.shape[1], device=depth.device)[:, None, None]
    lit = (depth[:, None] * (density.shape[1] / reach)[:, None, None, None] - cell).clamp(0, 1)
    return (lit * before - (1 - lit) * torch.log(-torch.expm1(-before))).mean()


def optical_depth(density: Tensor, reach: Tensor) -> Tensor:
    """From the camera to the middles of the cells (B, D, H, W) of frustums."""
    return (density.cumsum(dim=1) - density / 2) * (reach / density.shape[1])[:, None, None, None]


def _sample(grid: Tensor, place: Tensor) -> Tensor:
    return F.grid_sample(grid, place, padding_mode="border", align_corners=False)


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.gelu(self.conv1(self.norm(x))))


class FrustumHead(nn.Module):
    """Predicts frustums, and mixes their colours with a field's.

    A U-Net from the photograph to the density of all its pixels and depths; the encoder's tokens enter where it is
    coarsest (1/8), so that every pixel knows of the whole picture; features of its own size sharpen outlines.

    Args:
        token_dim: width of the encoder's tokens.
        grid: rows and columns of them.
        depths: steps of depth.
    """

    def __init__(self, token_dim: int, grid: tuple[int, int], depths: int) -> None:
        super().__init__()
        self.grid, self.depths, self.coarsest = grid, depths, 2 ** len(WIDTHS)
        pairs = list(zip(WIDTHS, WIDTHS[1:]))
        self.spread = nn.Linear(token_dim, WIDTHS[-1])
        self.outline = nn.Conv2d(5, FINE, 3, padding=1)
        self.stem = nn.Conv2d(5, WIDTHS[0], 2, stride=2)
        self.down = nn.ModuleList(map(_blocks, WIDTHS[:-1], BLOCKS))
        self.shrink = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.middle = _blocks(WIDTHS[-1], BLOCKS[-1])
        self.grow = nn.ModuleList(
            nn.Sequential(nn.Conv2d(coarse, 4 * fine, 1), nn.PixelShuffle(2)) for fine, coarse in pairs
        )
        self.up = nn.ModuleList(map(_blocks, WIDTHS[:-1], BLOCKS))
        self.out = nn.Sequential(nn.Conv2d(WIDTHS[0], 4 * (depths + 3 + FEATURES), 1), nn.PixelShuffle(2))
        self.refine = nn.Sequential(nn.Conv2d(WIDTHS[0], 4 * FINE, 1), nn.PixelShuffle(2))
        self.fine = nn.Sequential(Residual(FINE), nn.Conv2d(FINE, depths + 3 + FEATURES, 1))
        self.mix = nn.Sequential(nn.Linear(FEATURES + 12, 16), nn.GELU(), nn.Linear(16, 3))

    def forward(self, image: Tensor, tokens: Tensor, camera: Tensor, box: float) -> Frustum:
        """Photographs (B, 3, H, W) in [0, 1] and their patch tokens (B, L, D) -> their frustums."""
        predicted, reach = self.predict(image, tokens, camera).float(), reach_of(camera)
        logit, hidden, features = predicted.split([self.depths, 3, FEATURES], dim=1)
        density = density_of(logit, reach)
        volume = torch.stack([density, torch.exp(-optical_depth(density, reach))], dim=1)
        return Frustum(volume, torch.cat([image, hidden.sigmoid(), features], dim=1), camera, box)

    def predict(self, image: Tensor, tokens: Tensor, camera: Tensor) -> Tensor:
        """(B, D + 3 + FEATURES, H, W): logits of densities and of hidden colours, and features, of every pixel."""
        height, width = image.shape[-2:]
        x = torch.cat([image - 0.5, _whereabouts(camera, height, width)], dim=1)
        x = F.pad(x, (0, -width % self.coarsest, 0, -height % self.coarsest), mode="replicate")
        outline, x, skips = self.outline(x), self.stem(x), []
        for blocks, shrink in zip(self.down, self.shrink):
            skips.append(blocks(x))
            x = shrink(skips[-1])
        coarse = self.spread(tokens).transpose(1, 2).unflatten(2, self.grid)
        x = self.middle(x + F.interpolate(coarse, x.shape[-2:], mode="bilinear"))
        for grow, blocks, skip in zip(reversed(self.grow), reversed(self.up), reversed(skips)):
            x = blocks(grow(x) + skip)
        x = self.out(x) + self.fine(outline + self.refine(x))
        return x[..., :height, :width]

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
            own, hidden, features = pixels.split([3, 3, FEATURES], dim=-1)
            _, light, believed = frustum.look_up(place)
            known = torch.stack([light, believed, place[..., 2]], dim=-1)
            share = self.mix(torch.cat([hidden, features, known, own, other], dim=-1)).softmax(dim=-1)
            return (torch.stack([own, other, hidden], dim=-1) * share[..., None, :]).sum(dim=-1)

        return Field(density, colour)


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(width) for _ in range(count)))


def _whereabouts(camera: Tensor, height: int, width: int) -> Tensor:
    """(B, 2, H, W): where each pixel looks, x and y at depth 1."""
    row, column = ((torch.arange(side, device=camera.device) + 0.5 - side / 2) / height for side in (height, width))
    row, column = torch.meshgrid(row, column, indexing="ij")
    return torch.stack([column, row]) / camera[:, 1, None, None, None]
