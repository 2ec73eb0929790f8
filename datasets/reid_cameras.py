"""Procedural cameras: the place each one looks at, and what its lens, sensor and light do to a picture."""

import math
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class CameraRanges:
    """What the cameras of a domain have in common; every camera draws its own values from these ranges."""

    elevation: tuple[float, float]
    gain: float
    tint: tuple[float, float, float]
    exposure: tuple[float, float]
    gamma: tuple[float, float]
    saturation: tuple[float, float]
    haze: tuple[float, float]
    shade: tuple[float, float]
    blur: tuple[float, float]
    noise: tuple[float, float]
    detail: tuple[float, float]
    ground_value: tuple[float, float]
    ground_saturation: tuple[float, float]
    clutter: int


@dataclass(frozen=True)
class Camera:
    """One camera: viewpoint, colour response, optics and scene."""

    elevation: float
    heading: float
    colour: np.ndarray
    gamma: float
    haze: float
    shade: float
    light: float
    blur: float
    noise: float
    detail: float
    scene: np.ndarray


def _hsv(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    pixel = np.array([[[hue * 179, saturation * 255, value * 255]]], np.uint8)
    return tuple(int(c) for c in cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0])


def _scene(rng: np.random.Generator, ranges: CameraRanges, size: tuple[int, int]) -> np.ndarray:
    """A wide still of the place: wall above, ground below, paving, windows, trunks, bushes."""
    height, width = size
    value, saturation = ranges.ground_value, ranges.ground_saturation
    scene = np.empty((height, width, 3), np.uint8)
    horizon = int(height * rng.uniform(0.25, 0.6))
    scene[:horizon] = _hsv(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    scene[horizon:] = _hsv(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    for y in np.geomspace(4, height, 8):  # paving, closer together far away
        cv2.line(scene, (0, int(horizon + y)), (width, int(horizon + y)), _hsv(0, 0, value[0] * 0.8), 2)
    for _ in range(ranges.clutter):
        colour = _hsv(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
        x, y = int(rng.integers(width)), int(rng.integers(horizon + height // 4))
        wide, tall = int(rng.integers(12, 70)), int(rng.integers(12, 120))
        if rng.random() < 0.6:
            cv2.rectangle(scene, (x, y), (x + wide, y + tall), colour, -1)
        else:
            cv2.ellipse(scene, (x, y), (wide // 2, tall // 2), 0, 0, 360, colour, -1)
    grain = cv2.resize(rng.normal(0, 9, (height // 4, width // 4, 1)).astype(np.float32), (width, height))
    return np.clip(scene + grain[..., None], 0, 255).astype(np.uint8)


def _colour_matrix(rng: np.random.Generator, ranges: CameraRanges) -> np.ndarray:
    """Exposure, white balance and saturation as one 3x3 matrix on RGB columns."""
    grey = np.full((3, 3), 1 / 3)
    saturation = rng.uniform(*ranges.saturation)
    mix = saturation * np.eye(3) + (1 - saturation) * grey
    balance = np.array(ranges.tint) * np.exp(rng.uniform(-ranges.gain, ranges.gain, 3))
    return (np.diag(balance) @ mix * rng.uniform(*ranges.exposure)).astype(np.float32)


def sample_camera(rng: np.random.Generator, ranges: CameraRanges, canvas: tuple[int, int]) -> Camera:
    """Draw a new camera whose scene is four canvases (height, width) wide."""
    return Camera(
        elevation=rng.uniform(*ranges.elevation),
        heading=rng.uniform(0, 2 * math.pi),
        colour=_colour_matrix(rng, ranges),
        gamma=rng.uniform(*ranges.gamma),
        haze=rng.uniform(*ranges.haze),
        shade=rng.uniform(*ranges.shade),
        light=rng.choice([-1.0, 1.0]),
        blur=rng.uniform(*ranges.blur),
        noise=rng.uniform(*ranges.noise),
        detail=rng.uniform(*ranges.detail),
        scene=_scene(rng, ranges, (int(canvas[0] * 1.4), canvas[1] * 4)),
    )


def background(rng: np.random.Generator, camera: Camera, canvas: tuple[int, int]) -> np.ndarray:
    """A window (height, width, 3) of the camera's scene at a random place."""
    height, width = canvas
    y = int(rng.integers(camera.scene.shape[0] - height + 1))
    x = int(rng.integers(camera.scene.shape[1] - width + 1))
    return camera.scene[y : y + height, x : x + width].copy()


def shade_person(rng: np.random.Generator, picture: np.ndarray, mask: np.ndarray, camera: Camera) -> np.ndarray:
    """Light from one side and the folds of cloth, as a factor on the person's pixels."""
    height, width = mask.shape
    folds = cv2.resize(rng.normal(0, 0.07, (height // 16, width // 16)).astype(np.float32), (width, height))
    slope = np.linspace(-1, 1, width, dtype=np.float32) * camera.light * camera.shade
    factor = np.where(mask > 0, 1 + folds + slope, 1).astype(np.float32)
    return picture.astype(np.float32) * factor[..., None]


def take(rng: np.random.Generator, picture: np.ndarray, camera: Camera, size: tuple[int, int]) -> np.ndarray:
    """What the sensor records.

    Args:
        rng: Source of the noise and of the exposure's flicker.
        picture: RGB (h, w, 3), float32, 0-255, in white light.
        camera: The camera.
        size: Height and width to record.

    Returns:
        RGB (height, width, 3), uint8.
    """
    height, width = size
    small = (max(8, int(width * camera.detail)), max(16, int(height * camera.detail)))
    picture = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
    picture = picture @ (camera.colour * np.exp(rng.normal(0, 0.05))).T
    picture = 255 * np.clip(picture / 255, 0, 1) ** camera.gamma
    picture = picture * (1 - camera.haze) + 200 * camera.haze
    sigma = camera.blur * rng.uniform(0.6, 1.4)
    if sigma > 0.1:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    picture = picture + rng.normal(0, camera.noise, picture.shape).astype(np.float32)
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)
