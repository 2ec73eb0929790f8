"""Fits a radiance field to one capture by gradient descent: no weights, no other scene.

The field is NViST's vector-matrix, grown from coarse to fine. Space is warped axis by axis, so that what the cameras
look at gets most of the grid and the rest of the world the remainder. The points that structure from motion found give
distances to begin with; few photographs alone would leave fog in front of the cameras.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.errors import VisionKitError
from visionkit.nvs.cameras import Camera, look_at
from visionkit.nvs.captures.scene import Scene
from visionkit.nvs.fit_rays import Bounds, Rays, drawn, find_bounds, pixel_rays_of, point_rays_of
from visionkit.nvs.scene_field import SceneField
from visionkit.nvs.trajectories import curve, poses, through
from visionkit.ops.render import distortion_loss

if TYPE_CHECKING:
    from visionkit.nvs.warm_start import WarmStart

EVERY = 8  # photographs 0, 8, 16, ... by name are held out
FEWEST_VIEWS = 3


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
    scene.content()
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
