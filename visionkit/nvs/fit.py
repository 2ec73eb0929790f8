"""Fits a radiance field to one capture by gradient descent: no weights, no other scene.

The field is NViST's vector-matrix, grown from coarse to fine. Space is warped axis by axis, so that what the cameras
look at gets most of the grid and the rest of the world the remainder. The points that structure from motion found give
distances to begin with; few photographs alone would leave fog in front of the cameras.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit.errors import VisionKitError
from visionkit.nvs.cameras import Camera, look_at
from visionkit.nvs.captures.scene import Scene, viewed_centre, viewed_distances
from visionkit.nvs.field import FieldRenderer
from visionkit.nvs.trajectories import curve, poses, through
from visionkit.ops.render import (
    Field,
    composite_weights,
    density_volume,
    distortion_loss,
    lookup_volume,
    vector_matrix_features,
)

if TYPE_CHECKING:
    from visionkit.nvs.warm_start import WarmStart

EVERY = 8  # photographs 0, 8, 16, ... by name are held out
FEWEST_VIEWS = 3
SUBJECT = 0.6  # half side of the subject's box where no points tell it, in distances of the cameras from what they view
INNER = 0.7  # share of each axis of the grid for the subject's box
NEAR_SHARE = 0.75  # share of a ray's samples up to the subject's far end
CELLS = 24  # along the long side of a photograph, to tell which points hide others
MOST_POINTS = 5000  # of a photograph, of a cloud as dense as a scanner's
DENSITY_SCALE = 25.0
START = -0.15  # density's value before training, see SceneField.field


class Settings(NamedTuple):
    """How a field is fitted."""

    long_side: int = 160  # long side of the photographs in pixels
    steps: int = 250  # steps of gradient descent
    density_steps: int = 60  # steps before those, on the points' distances alone
    rays: int = 1536  # rays of pixels in a step
    point_rays: int = 512  # rays of points in a step
    samples: int = 56  # samples along a ray
    coloured: int = 12  # samples of a ray, those of largest weight, that get a colour
    density: int = 64  # cells along an axis of the finest density grid
    colour: int = 128  # cells along an axis of the finest colour grid
    channels: tuple[int, int] = (8, 12)  # channels of density and of colour
    width: int = 32  # width of the colour network
    growth: tuple[float, ...] = (0.15, 0.4)  # shares of the steps at which the grids double
    grid_rate: float = 0.03  # learning rate of grids and background at the start
    net_rate: float = 0.015  # learning rate of the colour network at the start
    exposure_rate: float = 2e-3  # learning rate of the photographs' exposures at the start
    last_rate: float = 0.05  # share of the rates that is left at the end
    depth_weight: float = 0.1  # weight of the points' distances at the start; a fifth of it at the end
    density_smooth: float = 0.02  # weight of the density grid's roughness
    colour_smooth: float = 0.003  # weight of the colour grid's roughness
    distortion_weight: float = 0.003  # weight of the distortion loss
    seed: int = 0  # seed of all that is drawn


class Rays(NamedTuple):
    """origins, directions (unit), rgb: (R, 3); view: (R,) number of the photograph; distance: (R,) or None."""

    origins: Tensor
    directions: Tensor
    rgb: Tensor
    view: Tensor
    distance: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> "Rays":
        return Rays(*(None if part is None else part[rows] for part in self))

    def to(self, device: torch.device | str) -> "Rays":
        """The same rays there."""
        return Rays(*(None if part is None else part.to(device) for part in self))


class Bounds(NamedTuple):
    """Where a capture's content lies: the subject's box (centre and half sides, (3,)), and distances along rays."""

    centre: Tensor
    half: Tensor
    near: float
    middle: float
    far: float

    def to(self, device: torch.device | str) -> "Bounds":
        """The same bounds there."""
        return self._replace(centre=self.centre.to(device), half=self.half.to(device))

    def warp(self, points: Tensor) -> Tensor:
        """World coordinates (..., 3) to the grid's [-1, 1]: linear in the box, as 1 / distance beyond it."""
        local = (points - self.centre) / self.half
        beyond = local.sign() * (1 - (1 - INNER) / local.abs().clamp_min(1))
        return torch.where(local.abs() <= 1, INNER * local, beyond)

    def edges(self, rays: int, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Sampling intervals (rays, samples + 1): even up to ``middle``, then even in 1 / distance up to ``far``.

        With a generator (of the CPU), inner edges are moved at random by up to half an interval, each ray's apart.
        """
        step = torch.linspace(0, 1, samples + 1, device=self.centre.device).expand(rays, -1)
        if generator is not None:
            noise = torch.rand(rays, samples - 1, generator=generator) - 0.5
            step = step + F.pad(noise, (1, 1)).to(step.device) / samples
        close = self.near + (self.middle - self.near) * step / NEAR_SHARE
        share = ((step - NEAR_SHARE) / (1 - NEAR_SHARE)).clamp(0, 1)
        distant = 1 / ((1 - share) / self.middle + share / self.far)
        return torch.where(step < NEAR_SHARE, close, distant)


def find_bounds(scene: Scene, points: Rays) -> Bounds:
    """Bounds by the points that many photographs agree on, or by the cameras where there are none."""
    trusted = scene.points[scene.trusted_points()]
    distance = points.distance.numpy()
    if len(trusted) < 20 or len(distance) < 20:
        normal = scene.normalised()
        near, far = normal.near / normal.scale, normal.far / normal.scale
        half = torch.full((3,), SUBJECT * float(np.median(viewed_distances(scene.c2w))))
        return Bounds(torch.tensor(viewed_centre(scene.c2w)).float(), half, 0.5 * near, far, 10 * far)
    centre = np.median(trusted, axis=0)
    half = 1.15 * np.quantile(np.abs(trusted - centre), 0.9, axis=0)
    middle = 1.1 * float(np.quantile(distance, 0.93))
    return Bounds(
        torch.tensor(centre).float(),
        torch.tensor(np.maximum(half, 0.05 * half.max())).float(),
        0.7 * float(np.quantile(distance, 0.001)),
        middle,
        max(10 * middle, 1.5 * float(np.quantile(distance, 0.999))),
    )


def pixel_rays_of(scene: Scene, rows: list[int], images: list[np.ndarray]) -> Rays:
    """All pixels of some photographs (H, W, 3) uint8."""
    parts = []
    for number, (row, image) in enumerate(zip(rows, images)):
        origins, directions = scene.camera(row, image.shape[:2]).rays()
        rgb = torch.from_numpy(image.copy()).float().view(-1, 3) / 255
        parts.append(Rays(origins, directions, rgb, torch.full((len(origins),), number)))
    return Rays(*(torch.cat(part) for part in list(zip(*parts))[:4]))


def point_rays_of(scene: Scene, rows: list[int], images: list[np.ndarray]) -> Rays:
    """From photographs (H, W, 3) to the points that they show, with colours and distances."""
    parts = []
    for number, (row, picture) in enumerate(zip(rows, images)):
        camera = scene.camera(row, picture.shape[:2])
        points, pixels = _points_in(scene, row, camera)
        place = torch.tensor(pixels * 2 / camera.size[::-1] - 1).float()  # [-1, 1] across the image
        towards = points - camera.centre
        image = torch.from_numpy(picture.copy()).float().movedim(-1, 0) / 255
        rgb = F.grid_sample(image[None], place[None, None], padding_mode="border", align_corners=False)[0, :, 0].T
        distance = np.linalg.norm(towards, axis=1)
        directions = torch.tensor(towards / distance[:, None]).float()
        origins = torch.tensor(camera.centre).float().expand_as(directions)
        view = torch.full((len(directions),), number)
        parts.append(Rays(origins, directions, rgb, view, torch.tensor(distance).float()))
    return Rays(*(torch.cat(part) for part in zip(*parts)))


def _points_in(scene: Scene, row: int, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """The points (M, 3) that a photograph was matched to, and its pixels (M, 2) where they lie.

    Where nobody says which photographs saw which points, as in nerfstudio's files, those that nothing seems to hide.
    """
    told = any(map(len, scene.visible))
    points = scene.points[scene.visible[row] if told else scene.trusted_points()]
    pixels, seen = camera.project(points)
    points, pixels = points[seen], pixels[seen]
    if not told:
        first = _in_front(pixels, np.linalg.norm(points - camera.centre, axis=1), camera.size)
        first = first[:: len(first) // MOST_POINTS + 1]
        points, pixels = points[first], pixels[first]
    return points, pixels


def _in_front(pixels: np.ndarray, distance: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Indices of the points at pixels (M, 2) that are about as near as the nearest in their cell of the image."""
    column, row = np.floor(pixels * CELLS / max(size)).astype(int).T
    cell = row * CELLS + column
    nearest = np.full(CELLS * CELLS, np.inf)
    np.minimum.at(nearest, cell, distance)
    return np.flatnonzero(distance <= 1.1 * nearest[cell])


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

    def __init__(self, settings: Settings, bounds: Bounds, views: int) -> None:
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


def drawn(rays: Rays, count: int, generator: torch.Generator) -> Rays:
    """Some rays at random, with replacement; a generator of the CPU gives the same ones on every device."""
    return rays[torch.randint(len(rays.origins), (count,), generator=generator).to(rays.origins.device)]


def distance_error(weights: Tensor, middle: Tensor, distance: Tensor) -> Tensor:
    """How far from the known distances rays end, relative to them; a ray that ends nowhere counts 1.

    Weights and distances of samples (R, N), known distances (R,) -> a scalar.
    """
    off = (weights * (middle - distance[:, None]).abs()).sum(dim=1) / distance
    return (off + 1 - weights.sum(dim=1)).mean()


def split(scene: Scene) -> tuple[list[int], list[int]]:
    """Photographs to fit and those held out: every eighth by name.

    Raises:
        VisionKitError: too few photographs, or all from one place.
    """
    held_out = list(range(0, len(scene), EVERY))
    fitted = [row for row in range(len(scene)) if row % EVERY]
    if len(fitted) < FEWEST_VIEWS:
        raise VisionKitError(
            f"{scene.name}: {len(scene)} photos with a camera; --fit needs at least {FEWEST_VIEWS + 1}, better 20"
        )
    scene.box()
    return fitted, held_out


def fit(
    scene: Scene,
    rows: list[int],
    settings: Settings,
    watch: Callable[[int, SceneField], None] = lambda step, model: None,
    start: "WarmStart | None" = None,
    device: torch.device | str = "cpu",
) -> SceneField:
    """Fits a field to some photographs of a capture. The same seed gives the same field.

    Args:
        scene: the capture.
        rows: numbers of the photographs to use.
        settings: sizes, steps, rates and the seed, see [Settings].
        watch: called after every step with its number and the field.
        start: a prediction to start at; ``scene`` and ``settings`` are then the ones that it gives.
        device: device to compute on.
    """
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    images = [scene.image(row, scene.target_size(row, settings.long_side)) for row in rows]
    pixels = pixel_rays_of(scene, rows, images)
    points = point_rays_of(scene, rows, images)
    bounds = find_bounds(scene, points)
    pixels, points = pixels.to(device), points.to(device) if len(points.origins) else None
    if start is not None:
        bounds = bounds._replace(centre=torch.zeros(3), half=torch.full((3,), start.box))
    model = SceneField(settings, bounds.to(device), len(rows)).to(device)
    if start is not None:
        start(model)
    else:
        _begin(model, pixels, points, generator)
    optimiser, stage = _optimiser(model), 0
    for step in range(settings.steps):
        progress = step / settings.steps
        if stage < len(settings.growth) and progress >= settings.growth[stage]:
            stage += 1
            model.grow(stage)
            optimiser = _optimiser(model)
        for group in optimiser.param_groups:
            group["lr"] = group["first"] * settings.last_rate**progress
        loss = _loss(model, pixels, points, progress, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        watch(step + 1, model)
    return model


def _begin(model: SceneField, pixels: Rays, points: Rays | None, generator: torch.Generator) -> None:
    """A field of the photographs' mean colour, dense where the points are."""
    mean = pixels.rgb.mean(dim=0).clamp(0.02, 0.98).logit()
    model.net.background_logit.data, model.net.rgb_mlp[-1].bias.data = mean, mean.clone()
    if points is not None:
        _fit_density(model, points, generator)


def _fit_density(model: SceneField, points: Rays, generator: torch.Generator) -> None:
    """Surfaces where the points are, at the coarsest grid, so that colours are asked for in few places only."""
    settings = model.settings
    optimiser = torch.optim.Adam(model.density_grid.parameters(), settings.grid_rate, (0.9, 0.99))
    for _ in range(settings.density_steps):
        rays = drawn(points, settings.rays, generator)
        edges = model.bounds.edges(len(rays.origins), settings.samples, generator)
        _, middle, weights = model.weights(model.field(), rays, edges)
        loss = distance_error(weights, middle, rays.distance)
        loss = loss + settings.density_smooth * model.density_grid.roughness()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _loss(model: SceneField, pixels: Rays, points: Rays | None, progress: float, generator: torch.Generator) -> Tensor:
    settings = model.settings
    rays = drawn(pixels, settings.rays, generator)
    if points is not None:
        chosen = drawn(points, settings.point_rays, generator)
        rays = Rays(*(torch.cat(pair) for pair in list(zip(rays, chosen))[:4]))
    edges = model.bounds.edges(len(rays.origins), settings.samples, generator)
    field = model.field()
    places, middle, weights = model.weights(field, rays, edges)
    rgb = model.shade(field, rays, places, weights)
    exposure = (model.exposure - model.exposure.mean(dim=0))[rays.view]
    rgb = rgb * exposure[:, 0].exp() + exposure[:, 1]
    loss = F.mse_loss(rgb, rays.rgb)
    loss = loss + settings.density_smooth * model.density_grid.roughness()
    loss = loss + settings.colour_smooth * model.colour_grid.roughness()
    # In 1 / distance a foreground and a background are as far apart as they look.
    loss = loss + settings.distortion_weight * distortion_loss(weights, -model.bounds.near / edges).mean()
    if points is not None:
        off = distance_error(weights[settings.rays :], middle[settings.rays :], chosen.distance)
        loss = loss + settings.depth_weight * 0.2**progress * off
    return loss


def _optimiser(model: SceneField) -> torch.optim.Optimizer:
    settings = model.settings
    groups = [
        dict(params=[*model.density_grid.parameters(), *model.colour_grid.parameters()], first=settings.grid_rate),
        dict(params=[model.net.background_logit], first=settings.grid_rate),
        dict(params=[*model.net.rgb_matrix.parameters(), *model.net.rgb_mlp.parameters()], first=settings.net_rate),
        dict(params=[model.exposure], first=settings.exposure_rate),
    ]
    return torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-12)


def check(settings: Settings) -> None:
    """Raises VisionKitError for sizes that cannot be."""
    if not 32 <= settings.long_side <= 1600:
        raise VisionKitError(f"long_side={settings.long_side} (--size): expected 32 to 1600 pixels")
    if settings.steps < 1:
        raise VisionKitError(f"--steps: expected at least 1, got {settings.steps}")
    doubled = 2 ** len(settings.growth)
    if not 16 <= settings.colour <= 512 or settings.colour % doubled or settings.density % doubled:
        got = f"{settings.colour} (colour={settings.colour}, density={settings.density})"
        raise VisionKitError(f"--resolution: expected a multiple of 8 from 16 to 512, got {got}")
    if not 0 <= settings.seed < 2**63:
        raise VisionKitError(f"--seed: expected 0 to 2^63 - 1, got {settings.seed}")


def path(
    scene: Scene,
    rows: list[int],
    bounds: Bounds,
    long_side: int,
    trajectory: str | None,
    frames: int,
    degrees: float | None = None,
) -> list[Camera]:
    """Cameras of a video: along the photographs, or on a trajectory around the subject from the middle photograph."""
    target = bounds.centre.cpu().double().numpy()  # mps has no float64
    middle = rows[len(rows) // 2]
    lens = scene.camera(middle, scene.target_size(middle, long_side))
    if trajectory is None:
        return [lens.moved(c2w) for c2w in through(scene.c2w[rows], target, frames)]
    towards = look_at(lens.centre, target, -scene.c2w[rows, :, 1].mean(axis=0))
    base = np.concatenate([towards[:, :3], target[:, None]], axis=1)
    distance = float(np.linalg.norm(target - lens.centre))
    return [lens.moved(c2w) for c2w in poses(curve(trajectory, frames, degrees), distance, base)]
