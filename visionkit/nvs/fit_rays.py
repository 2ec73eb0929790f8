"""What a fit sees of a capture: where its content lies, and rays through pixels and to points."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.nvs.captures.scene import Scene, viewed_centre, viewed_distances

SUBJECT = 0.6  # half side of the subject's box where no points tell it, in distances of the cameras from what they view
INNER = 0.7  # share of each axis of the grid for the subject's box
NEAR_SHARE = 0.75  # share of a ray's samples up to the subject's far end
CELLS = 24  # along the long side of a photograph, to tell which points hide others
MOST_POINTS = 5000  # of a photograph, of a cloud as dense as a scanner's


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
    """From photographs (H, W, 3) to the points that they were matched to, with colours and distances.

    Where nobody says which photographs saw which points, as in nerfstudio's files, to those that nothing seems to hide.
    """
    parts = []
    told = any(map(len, scene.visible))
    trusted = None if told else scene.points[scene.trusted_points()]
    for number, (row, picture) in enumerate(zip(rows, images)):
        camera = scene.camera(row, picture.shape[:2])
        points = scene.points[scene.visible[row]] if told else trusted
        pixels, seen = camera.project(points)
        pixels, towards = pixels[seen], points[seen] - camera.centre
        distance = np.linalg.norm(towards, axis=1)
        if not told:
            first = _in_front(pixels, distance, camera.size)
            pixels, towards, distance = pixels[first], towards[first], distance[first]
        place = torch.tensor(pixels * 2 / camera.size[::-1] - 1).float()  # [-1, 1] across the image
        image = torch.from_numpy(picture.copy()).float().movedim(-1, 0) / 255
        rgb = F.grid_sample(image[None], place[None, None], padding_mode="border", align_corners=False)[0, :, 0].T
        directions = torch.tensor(towards / distance[:, None]).float()
        origins = torch.tensor(camera.centre).float().expand_as(directions)
        view = torch.full((len(directions),), number)
        parts.append(Rays(origins, directions, rgb, view, torch.tensor(distance).float()))
    return Rays(*(torch.cat(part) for part in zip(*parts)))


def _in_front(pixels: np.ndarray, distance: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Indices of points at pixels (M, 2) that are about as near as the nearest in their cell of the image.

    Of more than MOST_POINTS every second, third, ...
    """
    column, row = np.floor(pixels * CELLS / max(size)).astype(int).T
    cell = row * CELLS + column
    nearest = np.full(CELLS * CELLS, np.inf)
    np.minimum.at(nearest, cell, distance)
    first = np.flatnonzero(distance <= 1.1 * nearest[cell])
    return first[:: len(first) // MOST_POINTS + 1]


def drawn(rays: Rays, count: int, generator: torch.Generator) -> Rays:
    """Some rays at random, with replacement; a generator of the CPU gives the same ones on every device."""
    return rays[torch.randint(len(rays.origins), (count,), generator=generator).to(rays.origins.device)]
