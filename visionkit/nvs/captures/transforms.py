"""Captures of nerfstudio and instant-ngp: a ``transforms.json`` beside its photographs."""

import json
import math
import os
from pathlib import Path

import numpy as np

from visionkit.errors import VisionKitError
from visionkit.extras import require
from visionkit.nvs.captures.photos import PHOTO_SUFFIXES, quarter_turns, stored_size
from visionkit.nvs.captures.scene import Scene, check_lens, same_shape, turned

_DISTORTION = ("k1", "k2", "p1", "p2", "k3")
_UNSUPPORTED = ("k4", "k5", "k6")  # their meaning differs from one writer to the next
_FOCAL = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y")
_NO_PINHOLE = ("FISHEYE", "EQUIRECT", "OMNI", "SPHER", "360", "180", "ORTHO")
# OpenGL's camera looks along -z with y up; ours along +z with y down.
_FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


def read_transforms(path: str | os.PathLike) -> Scene:
    """Reads a capture with its cameras in a ``transforms.json``.

    Lenses may be given once or per frame, as ``fl_x`` or ``camera_angle_x``; a frame with a focal length of its own
    takes none of those given once. Frames whose photograph is missing or whose entry is wrong are left out and listed
    in ``skipped``; points that cannot be read are done without, and so are the lens terms k4 to k6.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        VisionKitError: no such file, not of this form, or no frame that can be used.
    """
    path = Path(path)
    path = path / "transforms.json" if path.is_dir() else path
    shared = _read_json(path)
    if not isinstance(shared.get("frames"), list) or not shared["frames"]:
        raise VisionKitError(f"{path}: has no list of frames; expected nerfstudio's or instant-ngp's format")
    rows, skipped, unsupported = {}, [], set()
    for number, frame in enumerate(shared["frames"]):
        name = str(frame.get("file_path", f"frame {number}")) if isinstance(frame, dict) else f"frame {number}"
        try:
            frame = _with_shared(shared, frame)
            file = _find_photo(path.parent, name)
            terms = {key for key in _UNSUPPORTED if _number(frame, key, 0)}
            rows[name] = (file, *turned(*_read_frame(frame, file), quarter_turns(file)))
        except (VisionKitError, TypeError, ValueError) as error:
            skipped.append((name, str(error)))
        else:
            unsupported |= terms
    if not rows:
        raise VisionKitError(
            f"{path}: none of its {len(skipped)} frames can be used ({skipped[0][0]}: {skipped[0][1]}); mend them"
        )
    if unsupported:
        skipped.append((", ".join(sorted(unsupported)), "of the lens: not supported; the capture is used without"))
    names = tuple(sorted(rows))
    files, c2w, K, sizes, distortion = zip(*(rows[name] for name in names))
    points, points_reason = _read_points(path.parent, shared)
    if points_reason:
        skipped.append((str(shared["ply_file_path"]), points_reason))
    return Scene(
        name=path.parent.name,
        names=names,
        paths=files,
        K=np.stack(K),
        sizes=np.array(sizes),
        c2w=np.stack(c2w),
        distortion=np.stack(distortion),
        points=points,
        visible=tuple(np.zeros(0, int) for _ in names),
        skipped=tuple(skipped),
    )


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise VisionKitError(f"{path}: no such file; give a transforms.json or the folder that holds it") from error
    except (OSError, ValueError) as error:
        raise VisionKitError(f"{path}: is not valid JSON ({error}); restore it") from error
    if not isinstance(content, dict):
        raise VisionKitError(f"{path}: expected a JSON object with frames")
    return content


def _with_shared(shared: dict, frame: dict) -> dict:
    """A frame with what is given once for all; not their focal length, in whatever form, where it tells its own."""
    own_focal = any(key in frame for key in _FOCAL)
    return {**{key: value for key, value in shared.items() if not (own_focal and key in _FOCAL)}, **frame}


def _find_photo(folder: Path, name: str) -> Path:
    """The file of a frame; Blender's scenes leave the ending out, Windows writes backslashes."""
    for ending in ("", *PHOTO_SUFFIXES):
        for file in (folder / (name + ending), folder / (name.replace("\\", "/") + ending)):
            if file.is_file():
                return file
    raise VisionKitError("its photo is missing")


def _read_frame(frame: dict, file: Path) -> tuple[np.ndarray, np.ndarray, tuple[int, int], np.ndarray]:
    """c2w, K, (height, width) and distortion of one frame."""
    model = str(frame.get("camera_model", "")).upper()
    if any(kind in model for kind in _NO_PINHOLE) or frame.get("is_fisheye"):
        raise VisionKitError(f"has a lens of the kind {model or 'fisheye'}; make pinhole views of the photos first")
    photo_size = stored_size(file)
    size = _size(frame, photo_size)
    if not same_shape(photo_size, size):
        raise VisionKitError(
            f"is {photo_size[1]}x{photo_size[0]}, but its w and h say {size[1]}x{size[0]}; expected the same shape"
        )
    distortion = np.zeros(8)
    distortion[: len(_DISTORTION)] = [_number(frame, key, 0) for key in _DISTORTION]
    return _pose(frame), _intrinsics(frame, size), size, distortion


def _number(frame: dict, key: str, default: float) -> float:
    """What a frame tells of ``key``, or the default."""
    value = frame.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise VisionKitError(f"{key} is {value!r}; expected a finite number")
    return float(value)


def _pose(frame: dict) -> np.ndarray:
    """c2w (3, 4)."""
    wrong = VisionKitError("transform_matrix: expected 4 rows of 4 numbers, a rotation in its first three columns")
    try:
        pose = np.array(frame.get("transform_matrix"), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise wrong from error
    if pose.shape not in ((4, 4), (3, 4)) or not np.isfinite(pose).all():
        raise wrong
    pose = pose[:3] @ _FLIP
    with np.errstate(all="ignore"):  # numbers beyond all measure are no rotation either
        scale = np.cbrt(np.linalg.det(pose[:, :3]))
        off = np.abs(pose[:, :3] @ pose[:, :3].T / scale**2 - np.eye(3)).max()
    if not (scale > 0 and off <= 0.01):
        raise wrong
    pose[:, :3] /= scale
    return pose


def _size(frame: dict, photo_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that the lens speaks of; the photograph's own where the frame does not tell."""
    if "w" not in frame or "h" not in frame:
        return photo_size
    size = tuple(round(_number(frame, key, 0)) for key in ("h", "w"))
    if min(size) < 1:
        raise VisionKitError(f"w and h are {size[1]} and {size[0]}; expected at least 1 pixel")
    return size


def _intrinsics(frame: dict, size: tuple[int, int]) -> np.ndarray:
    """K (3, 3)."""
    height, width = size
    focal_x, focal_y = _focal(frame, "x", width), _focal(frame, "y", height)
    if focal_x is None and focal_y is None:
        raise VisionKitError("has no focal length (fl_x or camera_angle_x)")
    centre = {}
    for key, side in (("cx", width), ("cy", height)):
        centre[key] = _number(frame, key, side / 2)
        if not 0 <= centre[key] <= side:
            raise VisionKitError(f"{key} is {centre[key]:g}; expected a place in the image, 0 to {side}")
    focal_x, focal_y = focal_x or focal_y, focal_y or focal_x
    K = np.array([[focal_x, 0, centre["cx"]], [0, focal_y, centre["cy"]], [0, 0, 1]])
    check_lens(K, size)
    return K


def _focal(frame: dict, axis: str, pixels: int) -> float | None:
    """Focal length in pixels, if the frame tells it."""
    if f"fl_{axis}" in frame:
        focal = _number(frame, f"fl_{axis}", 0)
        if focal <= 0:
            raise VisionKitError(f"fl_{axis} is {focal:g}; expected more than 0 pixels")
        return focal
    if f"camera_angle_{axis}" in frame:
        angle = _number(frame, f"camera_angle_{axis}", 0)
        if not 0 < angle < math.pi:
            raise VisionKitError(f"camera_angle_{axis} is {angle:g}; expected radians between 0 and pi")
        return pixels / (2 * math.tan(angle / 2))
    return None


def _read_points(folder: Path, shared: dict) -> tuple[np.ndarray, str]:
    """nerfstudio's sparse points (P, 3), none if there are none, and why they cannot be read if so."""
    name = shared.get("ply_file_path")
    if not isinstance(name, str):
        return np.zeros((0, 3)), ""
    if not (folder / name).is_file():
        return np.zeros((0, 3)), "is missing; the capture is used without its points"
    trimesh = require("trimesh", "nvs")
    try:
        points = np.asarray(trimesh.load(folder / name, process=False).vertices, dtype=np.float64).reshape(-1, 3)
    except Exception:  # whatever its parser trips over
        return np.zeros((0, 3)), "cannot be read; the capture is used without its points"
    return points[np.isfinite(points).all(axis=1)], ""
