"""Paths of a camera around what an input view looks at.

A path is a curve (F, 3) of azimuth and elevation in degrees and distance in units of the input camera's. Zero azimuth
and elevation are the input view. Positive azimuth moves the camera to the right, positive elevation up.
"""

import difflib
import json
import os
from pathlib import Path

import numpy as np

from visionkit.checks import check_counts
from visionkit.errors import VisionKitError
from visionkit.nvs.cameras import compose, look_at

TRAJECTORIES = ("swing", "orbit", "spiral", "dolly")
FILE_KEYS = {"azimuth": (-720.0, 720.0), "elevation": (-89.0, 89.0), "distance": (0.05, 20.0)}
REST = {"azimuth": 0.0, "elevation": 0.0, "distance": 1.0}
STRAIGHT = 89.0
SIDES = 0.2, 0.8  # quantiles of the cameras' azimuth; further out the background is seen that few photographs show


def curve(name: str, frames: int, degrees: float | None = None) -> np.ndarray:
    """A path by its name, or by the JSON file that ``name`` is. Each but ``orbit`` begins and ends at the input view.

    - ``swing``: to the left and to the right, ``degrees`` (25) each way
    - ``orbit``: once around, rising and falling by a quarter of ``degrees`` (40)
    - ``spiral``: circles that widen to ``degrees`` (15) and narrow again
    - ``dolly``: closer and back

    Args:
        name: one of the names above, or the path of a JSON file.
        frames: number of frames F.
        degrees: reach of the first three, in degrees; None for the default in brackets.

    Raises:
        VisionKitError: an unknown name, a file with something wrong in it, or a reach for a path that has none.
    """
    check_counts("", 1, **{"--frames": frames})
    if degrees is not None and not 0 < degrees <= 180:
        raise VisionKitError(f"--degrees: expected more than 0 and at most 180, got {degrees:g}")
    if degrees is not None and (name == "dolly" or str(name).endswith(".json")):
        raise VisionKitError(f"--degrees: is for swing, orbit and spiral, not for {name}; leave it out")
    turn = 2 * np.pi * np.arange(frames) / frames
    still, far = np.zeros(frames), np.ones(frames)
    if name == "swing":
        return np.stack([-(degrees or 25) * np.sin(turn), still, far], axis=1)
    if name == "orbit":
        return np.stack([np.degrees(turn), (degrees or 40) / 4 * np.sin(turn), far], axis=1)
    if name == "spiral":
        radius = (degrees or 15) * np.sin(turn / 2)
        return np.stack([radius * np.sin(3 * turn), radius * (np.cos(3 * turn) - np.cos(turn)) / 2, far], axis=1)
    if name == "dolly":
        return np.stack([still, still, 1 - 0.3 * np.sin(turn / 2) ** 2], axis=1)
    if str(name).endswith(".json"):
        return curve_from_file(name, frames)
    close = difflib.get_close_matches(str(name), TRAJECTORIES, 1)
    hint = f"did you mean {close[0]!r}?" if close else "expected"
    raise VisionKitError(f"--trajectory {name}: {hint} ({', '.join(TRAJECTORIES)}, or a .json file)")


def curve_from_file(path: str | os.PathLike, frames: int) -> np.ndarray:
    """A smooth path (frames, 3) through the key frames of a file, see [curve].

    The file is a list of at least two, as ``[{"azimuth": -20}, {"azimuth": 20, "elevation": 5, "distance": 0.9}]``;
    what is left out is 0, 0 and 1.

    Raises:
        VisionKitError: what is wrong and where.
    """
    from scipy.interpolate import PchipInterpolator

    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise VisionKitError(
            f"{path}: no such trajectory file; give an existing one, or {', '.join(TRAJECTORIES)}"
        ) from error
    except (OSError, ValueError) as error:
        raise VisionKitError(f"{path}: is not valid JSON ({error}); correct it") from error
    if not isinstance(content, list) or len(content) < 2:
        raise VisionKitError(f'{path}: expected a list of 2 or more key frames, as {{"azimuth": 20, "distance": 0.9}}')
    keys = np.array([_key_frame(path, number, entry) for number, entry in enumerate(content)])
    return PchipInterpolator(np.linspace(0, 1, len(keys)), keys)(np.linspace(0, 1, frames))


def _key_frame(path: Path, number: int, entry: object) -> list[float]:
    where = f"{path}: key frame {number}"
    if not isinstance(entry, dict):
        raise VisionKitError(f"{where}: expected an object with {', '.join(FILE_KEYS)}")
    for key, value in entry.items():
        if key not in FILE_KEYS:
            close = difflib.get_close_matches(key, FILE_KEYS, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected {', '.join(FILE_KEYS)}"
            raise VisionKitError(f"{where}: {key!r} is unknown; {hint}")
        low, high = FILE_KEYS[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise VisionKitError(f"{where}: {key} is {value!r}; expected a number from {low:g} to {high:g}")
    return [float(entry.get(key, REST[key])) for key in FILE_KEYS]


def poses(path: np.ndarray, distance: float, base: np.ndarray | None = None) -> np.ndarray:
    """Cameras along a path that look at the point ``distance`` ahead of the input camera.

    Args:
        path: (F, 3), see [curve].
        distance: distance of the input camera from the point that it looks at.
        base: (3, 4) rigid motion of the frame in which that point is the origin and the input camera looks along +z;
            by default that frame itself.

    Returns:
        c2w (F, 3, 4).
    """
    azimuth = np.radians(path[:, 0])
    elevation = np.radians(np.clip(path[:, 1], -STRAIGHT, STRAIGHT))
    way = np.stack([np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), -np.cos(azimuth) * np.cos(elevation)], 1)
    cameras = np.stack([look_at(eye, np.zeros(3)) for eye in way * path[:, 2:] * distance])
    return cameras if base is None else compose(np.asarray(base)[None], cameras)


def through(c2w: np.ndarray, target: np.ndarray, frames: int) -> np.ndarray:
    """A smooth way along the cameras of a capture, from one side of ``target`` to the other and back.

    It follows a parabola through the cameras and turns before the outermost ones, so that it stays where photographs
    were taken.

    Args:
        c2w: (N, 3, 4).
        target: (3,) what the cameras look at.
        frames: F.

    Returns:
        c2w (F, 3, 4).
    """
    down = c2w[:, :, 1].mean(axis=0)
    down /= np.linalg.norm(down)
    forward = target - c2w[:, :, 3].mean(axis=0)
    forward -= down * (forward @ down)
    forward /= np.linalg.norm(forward)
    frame = np.stack([np.cross(down, forward), down, forward], axis=1)  # x, y, z of a camera in the middle
    local = (c2w[:, :, 3] - target) @ frame
    azimuth = np.arctan2(local[:, 0], -local[:, 2])
    shape = np.stack([np.arctan2(-local[:, 1], np.hypot(local[:, 0], local[:, 2])), np.linalg.norm(local, axis=1)], 1)
    degree = min(2, len(c2w) - 1)
    fits = [np.polyfit(azimuth, column, degree) for column in shape.T]
    low, high = np.quantile(azimuth, SIDES)
    swing = (low + high) / 2 - (high - low) / 2 * np.cos(2 * np.pi * np.arange(frames) / frames)
    elevation, distance = (np.polyval(fit, swing) for fit in fits)
    distance = np.clip(distance, *np.quantile(shape[:, 1], [0.1, 1.0]))
    path = np.stack([np.degrees(swing), np.degrees(elevation), distance], axis=1)
    return poses(path, 1.0, np.concatenate([frame, target[:, None]], axis=1))
