"""Pictures of the procedural scenes: ray tracing in torch, with one sun, its shadows, and sky light."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from views_scenes import ROOM_CENTRE, ROOM_RADIUS, Surface, Thing, World
from views_shapes import INFINITE, REACH, SHAPES

GROUND, WALL, FIRST_THING = 0, 1, 2
# Neighbouring pixels that differ by more show an edge.
CONTRAST = 0.05
# Rays that start on a surface start this far off it.
OFFSET = 2e-3


class Tracer:
    """A world on a device, ready for rays.

    Args:
        world: the scene.
        device: where to compute.
    """

    def __init__(self, world: World, device: str = "cpu") -> None:
        self.world, self.device = world, device
        self.things = [_Placed(thing, device) for thing in world.things]
        self.by_shape: dict[str, list[int]] = {}
        for number, thing in enumerate(world.things):
            self.by_shape.setdefault(thing.shape, []).append(number)
        self.sun = _tensor(world.sun, device)
        # A thing carries its texture along.
        frames = [(np.zeros(3), np.eye(3) / 1.5)] * FIRST_THING
        frames += [(thing.centre, thing.rotation / thing.scale) for thing in world.things]
        self.textures = [_Texture(each, *frame, device) for each, frame in zip(world.surfaces, frames)]

    def trace(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First hits of rays (P, 3), (P, 3): multiple of the direction (P,), surface number (P,), normal (P, 3)."""
        t, normal = self._wall(origin, direction)
        surface = torch.full(t.shape, WALL, device=t.device)
        ground = -origin[:, 2] / direction[:, 2]
        hit = (direction[:, 2] < 0) & (ground < t)
        up = torch.tensor([0.0, 0.0, 1.0], device=t.device)
        t, surface = torch.where(hit, ground, t), torch.where(hit, GROUND, surface)
        normal = torch.where(hit[:, None], up, normal)
        rays = _Rays(origin, direction)
        for number, near, distance, outward in self._meetings(rays):
            first = distance < t[near]
            chosen = near[first]
            t[chosen], surface[chosen], normal[chosen] = distance[first], number, outward[first]
        return t, surface, normal

    def _meetings(self, rays: "_Rays") -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """For every thing: its surface number, the rays that come near, and their hits and normals.

        Things of one shape are computed together.
        """
        for shape, numbers in self.by_shape.items():
            near = [rays.near(self.things[number]) for number in numbers]
            if not sum(map(len, near)):
                continue
            local = [self.things[number].localise(rays, rows) for number, rows in zip(numbers, near)]
            counts = [len(rows) for rows in near]
            hits = SHAPES[shape](*(torch.cat(parts) for parts in zip(*local)))
            for number, rows, distance, normal in zip(numbers, near, *(each.split(counts) for each in hits)):
                yield number + FIRST_THING, rows, distance, self.things[number].outward(normal)

    def in_shadow(self, points: Tensor) -> Tensor:
        """Whether something stands between (P, 3) points and the sun; walls do not count."""
        shadow = torch.zeros(len(points), dtype=torch.bool, device=points.device)
        for _, near, distance, _ in self._meetings(_Rays(points, self.sun.expand_as(points))):
            shadow[near] |= distance < INFINITE
        return shadow

    def albedo(self, points: Tensor, surface: Tensor) -> Tensor:
        """Texture of surfaces (P,) at world points (P, 3) -> (P, 3)."""
        colour = torch.empty_like(points)
        for number, texture in enumerate(self.textures):
            rows = (surface == number).nonzero()[:, 0]
            if len(rows):
                colour[rows] = texture(points[rows])
        return colour

    def shade(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Colours (P, 3) in [0, 1] of rays, and their hits (P,) as multiples of the direction."""
        t, surface, normal = self.trace(origin, direction)
        points = origin + direction * t[:, None]
        albedo = self.albedo(points, surface)
        facing = normal @ self.sun
        lit = ((facing > 0) & (surface != WALL)).nonzero()[:, 0]
        lit = lit[~self.in_shadow(points[lit] + OFFSET * normal[lit])]
        light = self.world.skylight * (0.75 + 0.25 * normal[:, 2])
        light[lit] += self.world.sunlight * facing[lit]
        light = torch.where(surface == WALL, 0.95, light)
        return (albedo * light[:, None]).clamp(0, 1), t

    def _wall(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """The room from inside: a round one, or a square one turned by ``room_yaw``."""
        centre = torch.tensor([*ROOM_CENTRE, 0.0], device=origin.device)
        start = origin - centre
        normal = torch.zeros_like(origin)
        if self.world.room == "round":
            a = direction[:, :2].square().sum(dim=1)
            b = (start[:, :2] * direction[:, :2]).sum(dim=1)
            c = start[:, :2].square().sum(dim=1) - ROOM_RADIUS**2
            t = (-b + (b * b - a * c).sqrt()) / a
            normal[:, :2] = -(start + direction * t[:, None])[:, :2] / ROOM_RADIUS
            return t, normal
        cos, sin = np.cos(self.world.room_yaw), np.sin(self.world.room_yaw)
        turn = _tensor(np.array([[cos, -sin], [sin, cos]]), origin.device)
        start, along = start[:, :2] @ turn, direction[:, :2] @ turn
        along = torch.where(along.abs() < 1e-9, 1e-9, along)
        times = (ROOM_RADIUS * along.sign() - start) / along
        t, axis = times.min(dim=1)
        rows = torch.arange(len(t), device=t.device)
        inward = torch.zeros_like(along)
        inward[rows, axis] = -along[rows, axis].sign()
        normal[:, :2] = inward @ turn.T
        return t, normal


class _Texture:
    """A surface as a function of world points."""

    def __init__(self, surface: Surface, centre: np.ndarray, frame: np.ndarray, device: str) -> None:
        self.first, self.second = _tensor(surface.colours, device)
        self.sharpness, self.warp, self.checks, self.gradient = map(float, surface.shape)
        # One matrix takes a world point to the three waves' angles and to its height.
        matrix = np.concatenate([frame @ surface.waves[:, :3].T, frame[:, 2:]], axis=1)
        self.matrix = _tensor(matrix.T, device)
        self.phase = _tensor(np.append(surface.waves[:, 3], 0) - centre @ matrix, device)

    def __call__(self, points: Tensor) -> Tensor:
        """(P, 3) -> (P, 3)."""
        base, warp, checks, height = torch.addmm(self.phase[:, None], self.matrix, points.T)
        value = (base + self.warp * warp.sin()).sin() * (1 - self.checks + self.checks * checks.sin())
        mix = 0.5 + 0.5 * (self.sharpness * value).tanh()
        mix = mix + self.gradient * ((0.5 + 0.5 * height).clamp(0, 1) - mix)
        return self.first + mix[:, None] * (self.second - self.first)


class _Rays:
    """Rays with what all things ask of them, computed once."""

    def __init__(self, origin: Tensor, direction: Tensor) -> None:
        self.origin, self.direction = origin, direction
        self.length = (direction * direction) @ torch.ones(3, device=origin.device)
        self.along = (origin * direction) @ torch.ones(3, device=origin.device)
        self.distance = (origin * origin) @ torch.ones(3, device=origin.device)

    def near(self, thing: "_Placed") -> Tensor:
        """Numbers of the rays that meet the ball around a thing."""
        along = self.direction @ thing.centre - self.along
        beyond = self.distance - 2 * (self.origin @ thing.centre) + (thing.centre.square().sum() - thing.radius**2)
        # Starting outside of the ball, a ray meets it if it is headed there and passes its centre closely enough.
        return ((along * along > beyond * self.length) & ((along > 0) | (beyond < 0))).nonzero()[:, 0]


class _Placed:
    """A thing's intersection in world coordinates."""

    def __init__(self, thing: Thing, device: str) -> None:
        self.centre = _tensor(thing.centre, device)
        self.to_local = _tensor(thing.rotation / thing.scale, device)
        self.radius = float(REACH[thing.shape] * thing.scale.max())

    def localise(self, rays: _Rays, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Some rays in the shape's own space."""
        origin, direction = rays.origin[rows], rays.direction[rows]
        return (origin - self.centre) @ self.to_local, direction @ self.to_local

    def outward(self, normal: Tensor) -> Tensor:
        """Normals (P, 3) of the shape -> unit normals in the world."""
        normal = normal @ self.to_local.T
        return normal / normal.norm(dim=1, keepdim=True).clamp(min=1e-9)


def view_directions(
    c2w: Tensor, focal: float, size: tuple[int, int], view: Tensor, row: Tensor, column: Tensor
) -> Tensor:
    """Directions (P, 3) through points of the views' images; z in camera coordinates is 1, so that hits are depths."""
    x, y = (column - size[1] / 2) / focal, (row - size[0] / 2) / focal
    right, down, forward = c2w[view, :, :3].unbind(dim=2)
    return x[:, None] * right + y[:, None] * down + forward


def render_views(
    tracer: Tracer, c2w: np.ndarray, focal: float, size: tuple[int, int], per_edge: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (V, H, W, 3) uint8 and depths (V, H, W) float32 at pixel centres.

    A pixel is one ray through its centre, and the mean of ``per_edge``^2 rays where its neighbours differ.
    """
    pose = _tensor(c2w, tracer.device)
    shape = (len(c2w), *size)
    view, row, column = (x.flatten() for x in _indices(shape, tracer.device))

    def shade(view: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        return tracer.shade(pose[view, :, 3], view_directions(pose, focal, size, view, row, column))

    colour, depth = shade(view, row + 0.5, column + 0.5)
    edge = _edges(colour.view(*shape, 3)).flatten().nonzero()[:, 0]
    inner = (torch.arange(per_edge, device=tracer.device) + 0.5) / per_edge
    rows = (row[edge, None, None] + inner[:, None]).expand(-1, -1, per_edge)
    columns = (column[edge, None, None] + inner).expand(-1, per_edge, -1)
    fine, _ = shade(view[edge].repeat_interleave(per_edge**2), rows.flatten(), columns.flatten())
    colour[edge] = fine.view(len(edge), per_edge**2, 3).mean(dim=1)
    return (colour.view(*shape, 3) * 255).round().byte().cpu().numpy(), depth.view(shape).float().cpu().numpy()


def _indices(shape: tuple[int, ...], device: str) -> tuple[Tensor, ...]:
    return torch.meshgrid(*(torch.arange(side, device=device) for side in shape), indexing="ij")


def _edges(images: Tensor) -> Tensor:
    """Pixels (V, H, W) of images (V, H, W, 3) that differ from a neighbour."""
    edge = torch.zeros(images.shape[:3], dtype=torch.bool, device=images.device)
    down = (images[:, 1:] - images[:, :-1]).abs().amax(dim=3) > CONTRAST
    right = (images[:, :, 1:] - images[:, :, :-1]).abs().amax(dim=3) > CONTRAST
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    edge[:, :, 1:] |= right
    edge[:, :, :-1] |= right
    return edge


def _tensor(array: np.ndarray, device: str | torch.device) -> Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float32, device=device)
