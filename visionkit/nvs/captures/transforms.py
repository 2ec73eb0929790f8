"""Captures of nerfstudio and instant-ngp: a ``transforms.json`` beside its photographs."""

import json
import os
from pathlib import Path

import numpy as np

from visionkit.errors import VisionKitError
from visionkit.extras import require
from visionkit.nvs.captures.photos import PHOTO_SUFFIXES
from visionkit.nvs.captures.scene import Scene

_DISTORTION = ("k1", "k2", "p1", "p2", "k3")
# OpenGL's camera looks along -z with y up; ours along +z with y down.
_FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


def read_transforms(path: str | os.PathLike) -> Scene:
    """Reads a capture with its cameras in a ``transforms.json``.

    Lenses may be given once or per frame, as ``fl_x`` or ``camera_angle_x``. Frames whose photograph is missing or
    whose entry is wrong are left out and listed in ``skipped``.

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
    rows, skipped = {}, []
    for number, frame in enumerate(shared["frames"]):
        name = str(frame.get("file_path", f"frame {number}")) if isinstance(frame, dict) else f"frame {number}"
        try:
            file = _find_photo(path.parent, name)
            rows[name] = (file, *_read_frame({**shared, **frame}, file))
        except (VisionKitError, TypeError, ValueError) as error:
            skipped.append((name, str(error)))
    if not rows:
        raise VisionKitError(
            f"{path}: none of its {len(skipped)} frames can be used ({skipped[0][0]}: {skipped[0][1]})"
        )
    names = tuple(sorted(rows))
    files, c2w, K, sizes, distortion = zip(*(rows[name] for name in names))
    points = _read_points(path.parent, shared)
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
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise VisionKitError(f"{path}: no such file; give a transforms.json or the folder that holds it") from error
    except (OSError, ValueError) as error:
        raise VisionKitError(f"{path}: is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise VisionKitError(f"{path}: expected a JSON object with frames")
    return content


def _find_photo(folder: Path, name: str) -> Path:
    """The file of a frame; Blender's scenes leave the ending out."""
    for ending in ("", *PHOTO_SUFFIXES):
        if (folder / (name + ending)).is_file():
            return folder / (name + ending)
    raise VisionKitError("its photo is missing")


def _read_frame(frame: dict, file: Path) -> tuple[np.ndarray, np.ndarray, tuple[int, int], np.ndarray]:
    """c2w, K, (height, width) and distortion of one frame."""
    from visionkit.nvs.captures.photos import read_photo_file

    if "FISHEYE" in str(frame.get("camera_model", "")) or frame.get("is_fisheye"):
        raise VisionKitError("has a fisheye lens; undistort the photos first")
    pose = np.array(frame.get("transform_matrix"), dtype=np.float64)
    if pose.shape not in ((4, 4), (3, 4)) or not np.isfinite(pose).all():
        raise VisionKitError("transform_matrix: expected 4 rows of 4 numbers")
    pose = pose[:3] @ _FLIP
    scale = np.cbrt(np.linalg.det(pose[:, :3]))
    if scale <= 0 or np.abs(pose[:, :3] @ pose[:, :3].T / scale**2 - np.eye(3)).max() > 0.01:
        raise VisionKitError("transform_matrix: expected a rotation in its first three columns")
    pose[:, :3] /= scale
    if "w" in frame and "h" in frame:
        width, height = int(frame["w"]), int(frame["h"])
    else:
        width, height = read_photo_file(file).size
    focal_x = _focal(frame, "x", width)
    focal_y = _focal(frame, "y", height) or focal_x
    focal_x = focal_x or focal_y
    if not focal_x or not np.isfinite([focal_x, focal_y]).all() or min(focal_x, focal_y) <= 0:
        raise VisionKitError("has no focal length (fl_x or camera_angle_x)")
    centre = float(frame.get("cx", width / 2)), float(frame.get("cy", height / 2))
    K = np.array([[focal_x, 0, centre[0]], [0, focal_y, centre[1]], [0, 0, 1]])
    distortion = np.zeros(8)
    distortion[: len(_DISTORTION)] = [float(frame.get(key, 0)) for key in _DISTORTION]
    return pose, K, (height, width), distortion


def _focal(frame: dict, axis: str, pixels: int) -> float | None:
    if f"fl_{axis}" in frame:
        return float(frame[f"fl_{axis}"])
    if f"camera_angle_{axis}" in frame:
        return pixels / (2 * np.tan(float(frame[f"camera_angle_{axis}"]) / 2))
    return None


def _read_points(folder: Path, shared: dict) -> np.ndarray:
    """nerfstudio's sparse points (P, 3), if there are any."""
    name = shared.get("ply_file_path")
    if not isinstance(name, str) or not (folder / name).is_file():
        return np.zeros((0, 3))
    model = require("pycolmap", "nvs").Reconstruction()
    model.import_PLY(str(folder / name))
    return np.array([point.xyz for point in model.points3D.values()]).reshape(-1, 3)
