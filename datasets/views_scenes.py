"""What stands where: the layouts, shapes, surfaces and lights of the procedural scenes.

The world has z up and the ground at z = 0; things stand around the origin within a radius of about 0.6. The camera
walks on the side of negative y. A closed room surrounds everything, the camera included, so that every ray ends.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from views_shapes import HALF_HEIGHT

FAMILIES = {
    "boxes": ("box",),
    "round": ("ellipsoid", "cylinder"),
    "spires": ("cone", "cylinder", "vase"),
    "rings": ("torus", "ellipsoid"),
    "pebbles": ("pebble", "coral"),
    "mixed": ("box", "ellipsoid", "cylinder", "cone", "torus", "pebble", "coral", "vase"),
}
ROOMS = ("round", "square", "corner")
COUNTS = {"few": 3, "many": 6}
ROOM_CENTRE = (0.0, -0.7)
ROOM_RADIUS = 1.6

# A place: x, y, height of its foot, half width, half height.
Place = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class Thing:
    """One object: a shape, and how it is put into the world."""

    shape: str
    centre: np.ndarray
    rotation: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True)
class Surface:
    """A procedural texture: two colours mixed by warped sines and a gradient along z.

    Attributes:
        colours: (2, 3).
        waves: (3, 4), frequency vectors and phases of three sines.
        shape: sharpness of the edges, strength of the warp, share of the second sine, share of the gradient.
    """

    colours: np.ndarray
    waves: np.ndarray
    shape: np.ndarray


@dataclass(frozen=True)
class World:
    """A whole scene. ``surfaces`` are those of the ground, the walls and the things, in this order."""

    things: list[Thing]
    surfaces: list[Surface]
    room: str
    room_yaw: float
    sun: np.ndarray
    sunlight: float
    skylight: float


def _row(rng: np.random.Generator, n: int) -> list[Place]:
    half = 0.5 / n
    return [((2 * i + 1) * half - 0.5, rng.normal(0, 0.03), 0, 0.85 * half, rng.uniform(0.1, 0.3)) for i in range(n)]


def _queue(rng: np.random.Generator, n: int) -> list[Place]:
    return [(y, x, z, width, height) for x, y, z, width, height in _row(rng, n)]


def _stairs(rng: np.random.Generator, n: int) -> list[Place]:
    return [(x, y, 0, width, 0.08 + 0.3 * i / n) for i, (x, y, _, width, _) in enumerate(_row(rng, n))]


def _ring(rng: np.random.Generator, n: int) -> list[Place]:
    half = 0.8 * 0.36 * math.sin(math.pi / n)
    angles = 2 * math.pi * np.arange(n) / n
    return [(0.36 * math.cos(a), 0.36 * math.sin(a), 0, half, rng.uniform(0.1, 0.28)) for a in angles]


def _ringed(rng: np.random.Generator, n: int) -> list[Place]:
    around = [(1.2 * x, 1.2 * y, z, min(width, 0.15), 0.6 * height) for x, y, z, width, height in _ring(rng, n - 1)]
    return [(0, 0, 0, 0.17, rng.uniform(0.2, 0.36)), *around]


def _grid(rng: np.random.Generator, n: int) -> list[Place]:
    side = math.ceil(math.sqrt(n))
    half = 0.42 / side
    cells = list(itertools.product(range(side), repeat=2))
    chosen = [cells[i] for i in rng.choice(len(cells), n, replace=False)]
    return [
        ((2 * i + 1) * half - 0.42, (2 * j + 1) * half - 0.42, 0, 0.85 * half, rng.uniform(0.1, 0.3)) for i, j in chosen
    ]


def _cluster(rng: np.random.Generator, n: int) -> list[Place]:
    places: list[Place] = []
    for _ in range(200):
        half = rng.uniform(0.1, 0.2)
        x, y = rng.uniform(-0.4, 0.4, 2)
        if all(math.hypot(x - other[0], y - other[1]) > half + other[3] for other in places):
            places.append((x, y, 0, half, rng.uniform(0.1, 0.3)))
        if len(places) == n:
            break
    return places


def _tower(rng: np.random.Generator, n: int) -> list[Place]:
    places, foot = [], 0.0
    for i in range(n):
        height = rng.uniform(0.8, 1.2) * 0.36 / n
        places.append((*rng.normal(0, 0.02, 2), foot, 0.26 * (1 - 0.5 * i / n), height))
        foot += 2 * height
    return places


def _twins(rng: np.random.Generator, n: int) -> list[Place]:
    left = [(x - 0.25, y, z, 0.75 * width, height) for x, y, z, width, height in _tower(rng, n // 2)]
    right = [(x + 0.25, y, z, 0.75 * width, height) for x, y, z, width, height in _tower(rng, n - n // 2)]
    return left + right


def _pyramid(rng: np.random.Generator, n: int) -> list[Place]:
    height = rng.uniform(0.1, 0.16)
    below = [(x, y, 0, width, height) for x, y, _, width, _ in _ring(rng, n - 1)]
    return [*below, (0, 0, 2 * height, 0.22, rng.uniform(0.12, 0.2))]


def _wedge(rng: np.random.Generator, n: int) -> list[Place]:
    places = []
    for i in range(n):
        along = 0.9 * ((i + 1) // 2) / max(1, n // 2) - 0.35
        places.append(((-1) ** i * 0.55 * (along + 0.35), along, 0, 0.32 / math.sqrt(n), rng.uniform(0.1, 0.28)))
    return places


def _heap(rng: np.random.Generator, n: int) -> list[Place]:
    return [(*rng.normal(0, 0.16, 2), 0, rng.uniform(0.12, 0.25), rng.uniform(0.1, 0.3)) for _ in range(n)]


def _arch(rng: np.random.Generator, n: int) -> list[Place]:
    height = rng.uniform(0.18, 0.26)
    pillars = [(x, 0, 0, 0.1, height) for x in (-0.3, 0.3)]
    above = [(x, 0, 2 * height, 0.8 * 0.45 / max(1, n - 2), 0.08) for x in np.linspace(-0.35, 0.35, n - 1)[:-1] + 0.06]
    return pillars + above


def _spiral(rng: np.random.Generator, n: int) -> list[Place]:
    places = []
    for i in range(n):
        angle, radius = 2.4 * i, 0.1 + 0.34 * i / n
        places.append((radius * math.cos(angle), radius * math.sin(angle), 0, 0.19 - 0.09 * i / n, 0.3 - 0.2 * i / n))
    return places


LAYOUTS: dict[str, Callable[[np.random.Generator, int], list[Place]]] = {
    "row": _row,
    "queue": _queue,
    "stairs": _stairs,
    "ring": _ring,
    "ringed": _ringed,
    "grid": _grid,
    "cluster": _cluster,
    "tower": _tower,
    "twins": _twins,
    "pyramid": _pyramid,
    "wedge": _wedge,
    "heap": _heap,
    "arch": _arch,
    "spiral": _spiral,
}
# Never among the training scenes.
TEST_LAYOUTS = ("arch", "spiral")


def categories(test: bool) -> list[str]:
    """Names of all categories, as ``ring_boxes_round_few``: layout, family of shapes, room, count."""
    layouts = [layout for layout in LAYOUTS if (layout in TEST_LAYOUTS) == test]
    return ["_".join(parts) for parts in itertools.product(layouts, FAMILIES, ROOMS, COUNTS)]


def sample_world(category: str, rng: np.random.Generator) -> World:
    """A scene of a category."""
    layout, family, room, count = category.split("_")
    yaw = rng.uniform(0, 2 * math.pi)
    places = LAYOUTS[layout](rng, COUNTS[count] + rng.integers(0, 2))
    things = [_thing(rng, place, str(rng.choice(FAMILIES[family])), yaw) for place in places]
    walls = _surface(rng, frequency=(0.9, 2.4), gradient=(0.3, 0.8), contrast=0.35)
    ground = _surface(rng, frequency=(1.5, 6.0), gradient=(0.0, 0.0), contrast=0.35)
    objects = [_surface(rng, frequency=(1.0, 4.0), gradient=(0.0, 0.5), contrast=0.6) for _ in things]
    angle, height = rng.uniform(math.pi, 2 * math.pi), rng.uniform(0.7, 1.3)
    sun = np.array([math.cos(angle) * math.cos(height), math.sin(angle) * math.cos(height), math.sin(height)])
    turn = rng.uniform(-0.25, 0.25) + (math.pi / 4 if room == "corner" else 0)
    sunlight = rng.uniform(0.25, 0.6)
    return World(things, [ground, walls, *objects], room, turn, sun, sunlight, rng.uniform(0.95, 1.1) - 0.7 * sunlight)


def _thing(rng: np.random.Generator, place: Place, shape: str, yaw: float) -> Thing:
    x, y, foot, width, height = place
    centre = np.array([math.cos(yaw) * x - math.sin(yaw) * y, math.sin(yaw) * x + math.cos(yaw) * y, foot + height])
    # No shape may stick out of its place sideways.
    scale = np.array([width, width * rng.uniform(0.8, 1.0), height / HALF_HEIGHT.get(shape, 1.0)])
    if shape == "torus":
        scale[2] = min(scale[2], 1.3 * width)
        centre[2] = foot + HALF_HEIGHT["torus"] * scale[2]
    return Thing(shape, centre, _turn(yaw + rng.uniform(0, 2 * math.pi)), scale)


def _turn(angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def _surface(
    rng: np.random.Generator, frequency: tuple[float, float], gradient: tuple[float, float], contrast: float
) -> Surface:
    first = _colour(rng)
    second = np.clip(first + contrast * (_colour(rng) - first) * 2, 0.03, 0.97)
    directions = rng.normal(size=(3, 3))
    directions *= rng.uniform(*frequency, (3, 1)) / np.linalg.norm(directions, axis=1, keepdims=True)
    waves = np.concatenate([directions, rng.uniform(0, 2 * math.pi, (3, 1))], axis=1)
    shape = [rng.choice([0.7, 2.0, 6.0]), rng.uniform(0, 1.5), rng.choice([0.0, 1.0]), rng.uniform(*gradient)]
    return Surface(np.stack([first, second]), waves, np.array(shape))


def _colour(rng: np.random.Generator) -> np.ndarray:
    """Any hue, rarely very dark; half of them are faint."""
    hue = 2 * math.pi * (rng.uniform() + np.array([0.0, 1 / 3, 2 / 3]))
    value, saturation = rng.uniform(0.3, 0.95), rng.choice([0.25, 0.75]) * rng.uniform(0.4, 1.2)
    return np.clip(value * (1 - saturation * (0.5 - 0.5 * np.cos(hue))), 0.02, 1.0)
