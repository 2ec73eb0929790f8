"""Where rays meet the shapes of the procedural scenes. Everything is torch and runs on any device.

A shape lives in its own space, inside the unit cube or a little beyond; an object is a shape with a scale, a rotation
and a place. Rays are origins (P, 3) and directions (P, 3) of any length; hits are multiples of the direction, inf where
the shape is missed.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

INFINITE = math.inf
MARCH_STEPS = 24
MARCH_CLOSE = 2e-3


def ellipsoid(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """The unit ball: distance (P,) and normal (P, 3) of the first hit."""
    a, b = _dot(direction, direction), _dot(origin, direction)
    root = b * b - a * (_dot(origin, origin) - 1)
    t = (-b - root.clamp(min=0).sqrt()) / a
    t = torch.where((root > 0) & (t > 0), t, INFINITE)
    return t, _at(origin, direction, t)


def box(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """The cube [-1, 1]^3."""
    enter, leave = _slabs(origin, direction)
    t, axis = enter.max(dim=1)
    t = torch.where((t <= leave.min(dim=1).values) & (t > 0), t, INFINITE)
    normal = torch.zeros_like(origin)
    rows = torch.arange(len(axis), device=axis.device)
    normal[rows, axis] = -direction[rows, axis].sign()
    return t, normal


def cylinder(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Radius 1 around z, from z = -1 to 1, with its lids."""
    a, b = _dot(direction[:, :2], direction[:, :2]), _dot(origin[:, :2], direction[:, :2])
    root = b * b - a * (_dot(origin[:, :2], origin[:, :2]) - 1)
    half = root.clamp(min=0).sqrt()
    enter, leave = _slabs(origin[:, 2:], direction[:, 2:])
    enter, leave = enter[:, 0], leave[:, 0]
    side = (-b - half) / a
    t = torch.maximum(side, enter)
    hit = (root > 0) & (t <= torch.minimum((-b + half) / a, leave)) & (t > 0)
    t = torch.where(hit, t, INFINITE)
    normal = _at(origin, direction, t)
    on_lid = (enter > side)[:, None]
    up = torch.zeros_like(normal)
    up[:, 2] = -direction[:, 2].sign()
    normal[:, 2] = 0
    return t, torch.where(on_lid, up, normal)


def cone(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Apex at z = 1, base of radius 1 at z = -1."""
    ratio = 0.25  # (radius / height)^2
    height = 1 - origin[:, 2]
    a = _dot(direction[:, :2], direction[:, :2]) - ratio * direction[:, 2] ** 2
    b = _dot(origin[:, :2], direction[:, :2]) + ratio * height * direction[:, 2]
    c = _dot(origin[:, :2], origin[:, :2]) - ratio * height**2
    half = (b * b - a * c).clamp(min=0).sqrt()
    candidates = torch.stack([(-b - half) / a, (-b + half) / a, (-1 - origin[:, 2]) / direction[:, 2]], dim=1)
    points = origin[:, None] + direction[:, None] * candidates[..., None]
    level = points[..., 2]
    good = (candidates > 0) & (level > -1) & (level < 1) & (b * b - a * c > 0)[:, None]
    good[:, 2] = (candidates[:, 2] > 0) & (_dot(points[:, 2, :2], points[:, 2, :2]) < 1)
    t, which = torch.where(good, candidates, INFINITE).min(dim=1)
    normal = _at(origin, direction, t)
    normal[:, 2] = ratio * (1 - normal[:, 2])
    down = torch.zeros_like(normal)
    down[:, 2] = -1
    return t, torch.where((which == 2)[:, None], down, normal)


def torus_distance(points: Tensor) -> Tensor:
    """A lying ring, 2 wide and 0.6 high."""
    around = points[:, :2].norm(dim=1) - 0.7
    return torch.hypot(around, points[:, 2]) - 0.3


def pebble_distance(points: Tensor) -> Tensor:
    """A ball displaced by smooth noise."""
    return _displaced(points, 0.17, 2.9, 0.7)


def coral_distance(points: Tensor) -> Tensor:
    """A ball displaced by finer and higher noise."""
    return _displaced(points, 0.12, 5.3, 0.6)


def vase_distance(points: Tensor) -> Tensor:
    """A solid of revolution whose radius follows two waves."""
    x, y, z = points.unbind(dim=1)
    radius = 0.52 + 0.2 * torch.sin(3.1 * z + 0.6) + 0.06 * torch.sin(7.3 * z)
    return torch.maximum(torch.hypot(x, y) - radius, z.abs() - 0.98) * 0.75


def _displaced(points: Tensor, height: float, frequency: float, share: float) -> Tensor:
    x, y, z = (frequency * points).unbind(dim=1)
    noise = torch.sin(x + 1.3) * torch.sin(y + 0.4) * torch.sin(z + 2.1)
    noise = noise + 0.5 * torch.sin(1.9 * y + 0.7) * torch.sin(1.7 * z + 1.9)
    # The distance is exact only for a ball: a share of it, so that marching does not step through.
    return share * (points.norm(dim=1) - 0.78 - height * noise)


def march(distance: Callable[[Tensor], Tensor], reach: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """An intersection by sphere tracing of a signed distance, inside a ball of radius ``reach``.

    Rays end where the distance falls below MARCH_CLOSE, so hits are that much early; see synthetic_views.md.
    """

    def intersect(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        length = direction.norm(dim=1)
        ray = direction / length[:, None]
        middle = -_dot(origin, ray)
        root = reach * reach - (_dot(origin, origin) - middle * middle)
        half = root.clamp(min=0).sqrt()
        t, end = (middle - half).clamp(min=0), middle + half
        active = torch.arange(len(t), device=t.device)[root > 0]
        found = torch.zeros_like(t, dtype=torch.bool)
        for _ in range(MARCH_STEPS):
            step = distance(origin[active] + ray[active] * t[active, None])
            found[active] |= step < MARCH_CLOSE
            t[active] += torch.where(step < MARCH_CLOSE, 0, step)
            active = active[~found[active] & (t[active] < end[active])]
            if not len(active):
                break
        hit = found & (t > 0)
        points = _at(origin, ray, torch.where(hit, t, INFINITE))
        return torch.where(hit, t / length, INFINITE), _gradient(distance, points)

    return intersect


def _gradient(distance: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Direction in which a signed distance grows, from four samples at a tetrahedron's corners."""
    corners = torch.tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], dtype=points.dtype, device=points.device)
    return sum(distance(points + 0.01 * corner)[:, None] * corner for corner in corners)


def _slabs(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Where a ray enters and leaves -1 <= x <= 1, for each column."""
    inverse = 1 / torch.where(direction.abs() < 1e-9, 1e-9, direction)
    first, second = (-1 - origin) * inverse, (1 - origin) * inverse
    return torch.minimum(first, second), torch.maximum(first, second)


def _at(origin: Tensor, direction: Tensor, t: Tensor) -> Tensor:
    return origin + direction * torch.where(t.isinf(), 0, t)[:, None]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=1)


# How far a shape reaches from its own centre.
REACH = {
    "ellipsoid": 1.0,
    "box": 1.74,
    "cylinder": 1.42,
    "cone": 1.42,
    "torus": 1.01,
    "pebble": 1.05,
    "coral": 1.0,
    "vase": 1.26,
}
SHAPES = {
    "ellipsoid": ellipsoid,
    "box": box,
    "cylinder": cylinder,
    "cone": cone,
    "torus": march(torus_distance, REACH["torus"]),
    "pebble": march(pebble_distance, REACH["pebble"]),
    "coral": march(coral_distance, REACH["coral"]),
    "vase": march(vase_distance, REACH["vase"]),
}
# Half the height of a shape in its own space where it is not 1, for putting it on the ground.
HALF_HEIGHT = {"torus": 0.3, "pebble": 0.85, "coral": 0.85}
