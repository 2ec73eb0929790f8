"""Procedural pedestrians: what tells one identity from another, and how it is painted in a pose.

A person is a small 2.5-D puppet. Every joint has a lateral place (to the person's left), a forward place and a
height; turning the puppet by a yaw and looking at it from above project these to the picture. Lengths are parts of
the body height, and heights are counted downwards from the top of the head (0) to the soles (1).
"""

import colorsys
import math
from dataclasses import dataclass

import cv2
import numpy as np

Colour = tuple[float, float, float]
"""Red, green and blue, 0-255, as the cloth would look in white light."""


@dataclass(frozen=True)
class Wardrobe:
    """What the people of a domain wear: probabilities of each kind, and the range of their colours."""

    tops: dict[str, float]
    patterns: dict[str, float]
    bottoms: dict[str, float]
    bags: dict[str, float]
    hats: dict[str, float]
    saturation: tuple[float, float]
    value: tuple[float, float]
    grey: float
    bottom_value: tuple[float, float]
    accent_value: tuple[float, float]


@dataclass(frozen=True)
class Person:
    """One identity: everything that stays the same from camera to camera."""

    girth: float
    shoulder: float
    leg: float
    head: float
    skin: Colour
    hair: Colour
    hair_style: str
    hat: str
    hat_colour: Colour
    top: str
    top_colour: Colour
    second_colour: Colour
    pattern: str
    pattern_scale: float
    sleeve_colour: Colour
    bottom: str
    bottom_colour: Colour
    side_stripe: bool
    shoes: Colour
    bag: str
    bag_colour: Colour


@dataclass(frozen=True)
class Pose:
    """How a person stands before a camera: yaw (0 faces the camera), step phase, stride and camera elevation, in
    radians; top (y) and middle (x) of the body and its height in pixels."""

    yaw: float
    phase: float
    stride: float
    elevation: float
    x: float
    y: float
    height: float


def _choice(rng: np.random.Generator, weights: dict[str, float]) -> str:
    names = list(weights)
    share = np.array([weights[name] for name in names])
    return names[rng.choice(len(names), p=share / share.sum())]


def _colour(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float], grey: float = 0.0
) -> Colour:
    low = 0.04 if rng.random() < grey else rng.uniform(*saturation)
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), low, rng.uniform(*value))
    return 255 * red, 255 * green, 255 * blue


def _unlike(rng: np.random.Generator, first: Colour, wardrobe: Wardrobe) -> Colour:
    """A second colour that can be told from the first, so that patterns are visible."""
    return max(
        (_colour(rng, wardrobe.saturation, wardrobe.accent_value, wardrobe.grey) for _ in range(4)),
        key=lambda colour: sum(abs(a - b) for a, b in zip(colour, first)),
    )


def sample_person(rng: np.random.Generator, wardrobe: Wardrobe) -> Person:
    """Draw a new identity."""
    tone = rng.uniform(0.35, 1.0)
    top_colour = _colour(rng, wardrobe.saturation, wardrobe.value, wardrobe.grey)
    second = _unlike(rng, top_colour, wardrobe)
    bottom = _choice(rng, wardrobe.bottoms)
    bottom_colour = _colour(rng, wardrobe.saturation, wardrobe.bottom_value, wardrobe.grey)
    hair = [(25, 20, 18), (60, 38, 22), (110, 70, 35), (190, 150, 90), (150, 150, 150), (130, 50, 25)]
    return Person(
        girth=rng.uniform(0.8, 1.3),
        shoulder=rng.uniform(0.105, 0.135),
        leg=rng.uniform(0.46, 0.53),
        head=rng.uniform(0.062, 0.074),
        skin=(235 * tone, 185 * tone, 150 * tone),
        hair=hair[rng.choice(len(hair), p=[0.3, 0.25, 0.15, 0.12, 0.1, 0.08])],
        hair_style=_choice(rng, {"short": 0.45, "long": 0.3, "bun": 0.12, "bald": 0.13}),
        hat=_choice(rng, wardrobe.hats),
        hat_colour=_colour(rng, wardrobe.saturation, wardrobe.accent_value, wardrobe.grey),
        top=_choice(rng, wardrobe.tops),
        top_colour=top_colour,
        second_colour=second,
        pattern=_choice(rng, wardrobe.patterns),
        pattern_scale=rng.uniform(0.7, 1.4),
        sleeve_colour=second if rng.random() < 0.25 else top_colour,
        bottom=bottom,
        bottom_colour=top_colour if bottom == "dress" else bottom_colour,
        side_stripe=rng.random() < 0.15,
        shoes=_colour(rng, (0.0, 0.8), (0.1, 0.95), 0.5),
        bag=_choice(rng, wardrobe.bags),
        bag_colour=_colour(rng, wardrobe.saturation, wardrobe.accent_value, wardrobe.grey / 2),
    )


def _pattern_field(person: Person, u: np.ndarray, v: np.ndarray, yaw: float) -> np.ndarray:
    """Where a torso shows its second colour. u: -1 to 1 across the seen width, v: 0 to 1 from neck to hem."""
    around = np.arcsin(np.clip(u, -1, 1)) * 2 / math.pi  # unrolled around the body
    facing = math.cos(yaw)
    n = 7 * person.pattern_scale
    if person.pattern == "hstripes":
        return np.mod(v * n, 1) < 0.45
    if person.pattern == "vstripes":
        return np.mod(around * n * 0.55 + 0.25, 1) < 0.45
    if person.pattern == "checks":
        return (np.mod(v * n * 0.7, 1) < 0.5) ^ (np.mod(around * n * 0.4, 1) < 0.5)
    if person.pattern == "dots":
        return (np.mod(v * n, 1) - 0.5) ** 2 + (np.mod(around * n * 0.5, 1) - 0.5) ** 2 < 0.1
    if person.pattern == "twotone":
        return v > 0.3 + 0.2 * person.pattern_scale
    if person.pattern == "yoke":
        return v < 0.15 + 0.15 * person.pattern_scale
    if person.pattern == "diagonal":
        return np.abs(u * (1 if facing > 0 else -1) * 0.5 + v - 0.55) < 0.14 * person.pattern_scale
    if person.pattern == "print" and facing > 0.1:
        centre = math.sin(yaw)
        wide = max(0.45 * facing * person.pattern_scale, 0.1)
        return ((u - centre) / wide) ** 2 + ((v - 0.38) / (0.2 * person.pattern_scale)) ** 2 < 1
    if person.pattern == "open" and facing > -0.1:
        return np.abs(u - math.sin(yaw)) < 0.3 * max(facing, 0.2)
    return np.zeros(u.shape, bool)


class _Painter:
    """Paints parts of one person on a canvas and remembers which pixels it touched."""

    def __init__(self, canvas: np.ndarray, person: Person, pose: Pose) -> None:
        self.canvas, self.person, self.pose = canvas, person, pose
        self.mask = np.zeros(canvas.shape[:2], np.uint8)
        self.cos, self.sin = math.cos(pose.yaw), math.sin(pose.yaw)
        self.tilt = math.sin(pose.elevation)

    def scale_at(self, y: float) -> float:
        """Seen from above, the head is nearer to the camera than the feet."""
        return 1 + 0.9 * self.tilt * (0.5 - y)

    def point(self, lateral: float, forward: float, y: float) -> tuple[float, float]:
        """Picture place (x, y) of a point of the body."""
        pose, scale = self.pose, self.scale_at(y)
        x = (lateral * self.cos + forward * self.sin) * scale
        near = -lateral * self.sin + forward * self.cos
        # integral of scale_at from the head down, so that the body keeps its height
        down = y + 0.45 * self.tilt * (y - y * y)
        return pose.x + x * pose.height, pose.y + (down + near * self.tilt) * pose.height

    def half_width(self, lateral: float, depth: float, y: float) -> float:
        """Half of the seen width, in pixels, of an elliptic section."""
        return math.hypot(lateral * self.cos, depth * self.sin) * self.scale_at(y) * self.pose.height

    def fill(self, points: list[tuple[float, float]], colour: Colour) -> None:
        polygon = np.round(np.array(points) * 8).astype(np.int32)
        cv2.fillPoly(self.canvas, [polygon], colour, cv2.LINE_8, 3)
        cv2.fillPoly(self.mask, [polygon], 255, cv2.LINE_8, 3)

    def ellipse(self, centre: tuple[float, float], axes: tuple[float, float], colour: Colour, angle: float = 0) -> None:
        box = (centre, (max(2 * axes[0], 1), max(2 * axes[1], 1)), angle)
        cv2.ellipse(self.canvas, box, colour, -1)
        cv2.ellipse(self.mask, box, 255, -1)

    def limb(self, a: tuple[float, float], b: tuple[float, float], wa: float, wb: float, colour: Colour) -> None:
        """A tapered stroke with round ends; wa and wb are half-widths in body heights."""
        wa, wb = wa * self.pose.height, wb * self.pose.height
        dx, dy = b[0] - a[0], b[1] - a[1]
        norm = max(math.hypot(dx, dy), 1e-6)
        nx, ny = -dy / norm, dx / norm
        self.fill(
            [
                (a[0] + nx * wa, a[1] + ny * wa),
                (b[0] + nx * wb, b[1] + ny * wb),
                (b[0] - nx * wb, b[1] - ny * wb),
                (a[0] - nx * wa, a[1] - ny * wa),
            ],
            colour,
        )
        self.ellipse(a, (wa, wa), colour)
        self.ellipse(b, (wb, wb), colour)

    def section(self, outline: list[tuple[float, float, float]]) -> list[tuple[float, float]]:
        """Polygon of a body part from its sections (y, half breadth, half depth)."""
        left, right = [], []
        for y, lateral, depth in outline:
            x, py = self.point(0, 0, y)
            half = self.half_width(lateral, depth, y)
            left.append((x - half, py))
            right.append((x + half, py))
        return left + right[::-1]

    def torso(self) -> None:
        person = self.person
        g, hip, shoulder = person.girth, 1 - person.leg, person.shoulder
        outline = [
            (0.155, 0.045, 0.04),
            (0.185, shoulder * 0.92 * (0.8 + 0.2 * g), 0.055 * g),
            (0.26, shoulder * 0.9 * (0.75 + 0.25 * g), 0.07 * g),
            (0.40, 0.078 * g, 0.068 * g),
            (hip + 0.02, 0.088 * g, 0.075 * g),
        ]
        if person.top == "coat":
            outline.append((hip + 0.16, 0.108 * g, 0.09 * g))
        polygon = self.section(outline)
        self.fill(polygon, person.top_colour)
        self.cloth(polygon)

    def cloth(self, polygon: list[tuple[float, float]]) -> None:
        """Paint the second colour over a filled torso."""
        points = np.array(polygon)
        height, width = self.mask.shape
        x0, y0 = np.maximum(np.floor(points.min(0)).astype(int), 0)
        x1, y1 = np.minimum(np.ceil(points.max(0)).astype(int) + 1, (width, height))
        if self.person.pattern == "plain" or x1 <= x0 or y1 <= y0:
            return
        inside = np.zeros((y1 - y0, x1 - x0), np.uint8)
        cv2.fillPoly(inside, [np.round((points - (x0, y0)) * 8).astype(np.int32)], 1, cv2.LINE_8, 3)
        middle, half = points[:, 0].mean(), np.ptp(points[:, 0]) / 2 + 1e-6
        u = (np.arange(x0, x1)[None, :] - middle) / half
        v = (np.arange(y0, y1)[:, None] - points[:, 1].min()) / np.ptp(points[:, 1])
        shown = _pattern_field(self.person, *np.broadcast_arrays(u, v), self.pose.yaw) & (inside > 0)
        self.canvas[y0:y1, x0:x1][shown] = self.person.second_colour

    def leg(self, side: int) -> None:
        person, pose = self.person, self.pose
        hip_y, g = 1 - person.leg, person.girth
        swing = pose.stride * math.sin(pose.phase) * side
        bend = max(0.0, -math.cos(pose.phase) * side) * pose.stride * 1.2
        thigh, shin = person.leg * 0.48, person.leg * 0.46
        lateral = side * 0.045 * g
        knee_f, knee_y = math.sin(swing) * thigh, hip_y + math.cos(swing) * thigh
        foot_f, foot_y = knee_f + math.sin(swing - bend) * shin, knee_y + math.cos(swing - bend) * shin
        hip = self.point(lateral, 0, hip_y)
        knee = self.point(lateral, knee_f, knee_y)
        ankle = self.point(lateral * 0.9, foot_f, foot_y)
        toe = self.point(lateral * 0.9, foot_f + 0.05, foot_y + 0.025)
        bare = person.bottom in ("skirt", "dress", "shorts")
        lower = person.skin if bare else person.bottom_colour
        upper = person.skin if person.bottom in ("skirt", "dress") else person.bottom_colour
        loose = 0.82 if bare else 1.0
        self.limb(knee, ankle, 0.034 * g * loose, 0.026 * g * loose, lower)
        self.limb(hip, knee, 0.048 * g, 0.038 * g, upper)
        if person.side_stripe and not bare:
            self.limb(hip, knee, 0.012, 0.010, person.second_colour)
            self.limb(knee, ankle, 0.010, 0.009, person.second_colour)
        self.limb(ankle, toe, 0.026, 0.022, person.shoes)

    def skirt(self) -> None:
        person = self.person
        hip, g = 1 - person.leg, person.girth
        hem = hip + person.leg * 0.45
        outline = [(hip - 0.03, 0.085 * g, 0.07 * g), (hem, 0.115 * g, 0.11 * g)]
        self.fill(self.section(outline), person.bottom_colour)

    def arm(self, side: int) -> None:
        person, pose = self.person, self.pose
        swing = -0.8 * pose.stride * math.sin(pose.phase) * side
        lateral = side * person.shoulder * (0.8 + 0.2 * person.girth)
        shoulder = self.point(lateral * 0.92, 0, 0.2)
        elbow_f, elbow_y = math.sin(swing) * 0.16, 0.2 + math.cos(swing) * 0.16
        hand_f, hand_y = elbow_f + math.sin(swing + 0.35) * 0.15, elbow_y + math.cos(swing + 0.35) * 0.15
        elbow = self.point(lateral * 1.12, elbow_f, elbow_y)
        hand = self.point(lateral * 1.1, hand_f, hand_y)
        long = person.top in ("shirt", "coat")
        thick = 0.031 * (0.6 + 0.4 * person.girth)
        forearm = person.sleeve_colour if long else person.skin
        upper = person.skin if person.top == "vest" else person.sleeve_colour
        self.limb(elbow, hand, thick * 0.85, thick * 0.7, forearm)
        self.limb(shoulder, elbow, thick * 1.1, thick * 0.95, upper)
        self.ellipse(hand, (0.022 * pose.height, 0.024 * pose.height), person.skin)
        if person.bag == "handbag" and side > 0:
            x, y = hand
            size = 0.055 * pose.height
            self.fill(
                [
                    (x - size, y + 6),
                    (x + size, y + 6),
                    (x + size * 1.1, y + 2.4 * size),
                    (x - size * 1.1, y + 2.4 * size),
                ],
                person.bag_colour,
            )

    def head(self) -> None:
        person, pose = self.person, self.pose
        r = person.head * pose.height
        centre = self.point(0, 0.01, person.head)
        self.limb(self.point(0, 0, 0.12), self.point(0, 0, 0.165), 0.026, 0.032, person.skin)
        facing = self.cos
        if person.hair_style == "long":
            self.ellipse((centre[0] - 0.25 * r * self.sin, centre[1] + 0.6 * r), (0.85 * r, 1.35 * r), person.hair)
        self.ellipse(centre, (0.76 * r, r), person.skin)
        if person.hair_style != "bald":
            shift = (-0.3 * self.sin * r, -0.45 * r if facing > 0 else -0.1 * r)
            tall = 0.62 * r if facing > 0.2 else (0.75 * r if facing > -0.3 else 0.95 * r)
            self.ellipse((centre[0] + shift[0], centre[1] + shift[1]), (0.8 * r, tall), person.hair)
        if person.hair_style == "bun":
            self.ellipse((centre[0] - 0.5 * self.sin * r, centre[1] - 0.95 * r), (0.36 * r, 0.36 * r), person.hair)
        self.hat(centre, r)

    def hat(self, centre: tuple[float, float], r: float) -> None:
        person = self.person
        if person.hat == "none":
            return
        x, y = centre
        self.ellipse((x, y - 0.5 * r), (0.86 * r, 0.62 * r), person.hat_colour)
        if person.hat == "cap" and self.cos > -0.3:
            self.ellipse((x + 0.75 * r * self.sin, y - 0.25 * r), (0.7 * r, 0.2 * r), person.hat_colour)
        if person.hat == "brim":
            self.ellipse((x, y - 0.2 * r), (1.45 * r, 0.28 * r), person.hat_colour)

    def backpack(self) -> None:
        """The sack when seen from behind or the side; the straps when seen from the front."""
        person, h = self.person, self.pose.height
        x, y = self.point(0, -0.11, 0.3)
        half = max(0.082 * abs(self.cos), 0.055) * h
        if self.cos < 0.35:
            self.ellipse((x, y), (half, 0.125 * h), person.bag_colour)
            self.ellipse((x, y + 0.045 * h), (half * 0.6, 0.04 * h), tuple(0.7 * c for c in person.bag_colour))
        else:
            for side in (-1, 1):
                top, low = self.point(side * 0.07, 0.05, 0.18), self.point(side * 0.085, 0.04, 0.36)
                self.limb(top, low, 0.014, 0.012, person.bag_colour)

    def shoulder_bag(self) -> None:
        person, h = self.person, self.pose.height
        top, low = self.point(-0.07, 0.02, 0.17), self.point(0.11, 0.0, 0.47)
        self.limb(top, low, 0.011, 0.011, person.bag_colour)
        self.ellipse((low[0], low[1] + 0.02 * h), (0.065 * h, 0.055 * h), person.bag_colour)

    def paint(self) -> np.ndarray:
        """Paint the parts from far to near; returns the mask of the person."""
        far = 1 if self.sin > 0 else -1  # the left side is the far one when the person walks to the right
        person, from_behind = self.person, self.cos < 0
        if person.bag == "backpack" and not from_behind and self.cos < 0.35:
            self.backpack()
        self.arm(far)
        self.leg(far)
        self.leg(-far)
        if person.bottom in ("skirt", "dress"):
            self.skirt()
        self.torso()
        if person.bag == "backpack" and (from_behind or self.cos >= 0.35):
            self.backpack()
        if person.bag == "shoulder":
            self.shoulder_bag()
        self.arm(-far)
        self.head()
        return self.mask


def paint_person(canvas: np.ndarray, person: Person, pose: Pose) -> np.ndarray:
    """Paint a person on a canvas, in place.

    Args:
        canvas: RGB picture (H, W, 3), uint8.
        person: Who.
        pose: Where and how, in pixels of the canvas.

    Returns:
        Mask (H, W), uint8: 255 where the person is.
    """
    return _Painter(canvas, person, pose).paint()
