"""Captures with cameras by COLMAP, in MVImgNet's tree: ``images/`` and ``sparse/0/*.bin`` (or ``.txt``)."""

import os
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np

from visionkit.errors import VisionKitError
from visionkit.extras import require
from visionkit.nvs.captures.photos import PHOTO_SUFFIXES, quarter_turns, stored_size
from visionkit.nvs.captures.scene import Scene, check_lens, same_shape, turned

# COLMAP's parameters after focal length(s) and principal point -> places in OpenCV's k1, k2, p1, p2, k3, ..., k6.
_DISTORTION = {
    "SIMPLE_PINHOLE": (),
    "PINHOLE": (),
    "SIMPLE_RADIAL": (0,),
    "RADIAL": (0, 1),
    "OPENCV": (0, 1, 2, 3),
    "FULL_OPENCV": (0, 1, 2, 3, 4, 5, 6, 7),
}
_DAMAGED = (RuntimeError, ValueError, IndexError)  # what pycolmap raises about a file that contradicts itself
MODEL_FILES = ("cameras", "images", "points3D")


def read_colmap(folder: str | os.PathLike, images: str = "images") -> Scene:
    """Reads a capture that COLMAP found the cameras of.

    Photographs and poses are joined by file name; what lacks one of the two is left out and listed in ``skipped``.
    Unreadable points are done without.

    Args:
        folder: folder of the capture, with the photographs and ``sparse/0``.
        images: folder of the photographs in it. They may be smaller than COLMAP's.

    Raises:
        VisionKitError: no model, none that can be read, or no photograph with a pose.
    """
    folder = Path(folder)
    model_folder = find_model(folder)
    model, points_reason = _read_model(model_folder)
    files = _files_below(folder / images)
    try:
        posed = {image.name: image for image in model.images.values() if image.has_pose}
    except UnicodeDecodeError as error:
        raise VisionKitError(f"{model_folder}: names a photo in bytes that are no text; prepare it again") from error
    skipped = [(name, "has no pose") for name in sorted(set(files) - set(posed))]
    skipped += [(name, "is not in the folder") for name in sorted(set(posed) - set(files))]
    if points_reason:
        skipped.append((points_reason, "cannot be read; the capture is used without its points"))

    point_ids = np.array(sorted(model.points3D), dtype=np.int64)
    rows = []
    for name in sorted(set(files) & set(posed)):
        try:
            camera = _read_pose(posed[name]), *_read_camera(files[name], posed[name].camera)
            rows.append((name, *turned(*camera, quarter_turns(files[name]))))
        except VisionKitError as error:
            skipped.append((name, str(error)))
    if not rows:
        reason = f" ({skipped[0][0]} {skipped[0][1]})" if skipped else ""
        raise VisionKitError(
            f"{folder}: no photo in {images}/ has a pose in {model_folder.relative_to(folder)}{reason};"
            " names must be the same in both"
        )
    names, c2w, K, sizes, distortion = zip(*rows)
    return Scene(
        name=folder.name,
        names=names,
        paths=tuple(files[name] for name in names),
        K=np.stack(K),
        sizes=np.array(sizes),
        c2w=np.stack(c2w),
        distortion=np.stack(distortion),
        points=np.array([model.points3D[i].xyz for i in point_ids]).reshape(-1, 3),
        visible=tuple(_visible(posed[name], point_ids) for name in names),
        skipped=tuple(skipped),
    )


def find_model(folder: Path) -> Path:
    """The folder of a capture's COLMAP model: ``sparse/0``, else ``sparse``.

    Raises:
        VisionKitError: neither holds one.
    """
    for place in (folder / "sparse" / "0", folder / "sparse"):
        if any((place / f"images{ending}").is_file() for ending in (".bin", ".txt")):
            return place
    if (folder / "sparse").is_dir():
        raise VisionKitError(
            f"{folder / 'sparse'}: is empty, structure from motion failed here; run `visionkit prepare_capture`"
        )
    raise VisionKitError(f"{folder}: is no capture, it has no sparse/0; run `visionkit prepare_capture`")


def _read_model(folder: Path) -> tuple[object, str]:
    """The model, and the file of points if that had to be left out.

    Only cameras, images and points are read: newer versions of COLMAP say the same again in rigs and frames.
    """
    ending = ".bin" if (folder / "images.bin").is_file() else ".txt"
    for name in MODEL_FILES[:2]:
        file = folder / f"{name}{ending}"
        if not file.is_file():
            raise VisionKitError(f"{file}: is missing; restore it or prepare the capture again")
        if ending == ".bin" and not _is_whole(file):
            raise VisionKitError(f"{file}: is truncated or damaged; restore it or prepare the capture again")
    points = folder / f"points3D{ending}"
    if points.is_file() and (ending == ".txt" or _is_whole(points)):
        try:
            return _read_linked(folder, ending, points), ""
        except _DAMAGED:  # the second reading tells whether the points are to blame
            pass
    try:
        return _read_linked(folder, ending, None), points.name
    except _DAMAGED as error:
        reason = str(error).splitlines()[0][:80]
        raise VisionKitError(
            f"{folder}: cannot be read as a COLMAP model ({reason}); restore its files or prepare the capture again"
        ) from error


def _read_linked(folder: Path, ending: str, points: Path | None) -> object:
    pycolmap = require("pycolmap", "nvs")
    with tempfile.TemporaryDirectory() as place:
        for file in [folder / f"{name}{ending}" for name in MODEL_FILES[:2]] + ([points] if points else []):
            try:
                os.symlink(file.resolve(), Path(place, file.name))
            except OSError:  # Windows lets only some users make links
                shutil.copyfile(file, Path(place, file.name))
        if not points:
            Path(place, f"points3D{ending}").write_bytes(b"\0" * 8 if ending == ".bin" else b"")
        return pycolmap.Reconstruction(place)


def _is_whole(file: Path) -> bool:
    """Whether a binary file's entries end where it does: pycolmap takes the process down when they do not."""
    data = file.read_bytes()
    step = dict(cameras=_after_camera, images=_after_image, points3D=_after_point)[file.stem]
    try:
        (count,), place = struct.unpack_from("<Q", data), 8
        if count > len(data):
            return False
        for _ in range(count):
            place = step(data, place)
    except (struct.error, ValueError, KeyError, OverflowError):
        return False
    return place == len(data)


def _after_camera(data: bytes, place: int) -> int:
    pycolmap = require("pycolmap", "nvs")
    (model,) = struct.unpack_from("<i", data, place + 4)
    return place + 24 + 8 * len(pycolmap.Camera.create_from_model_id(0, pycolmap.CameraModelId(model), 1, 1, 1).params)


def _after_image(data: bytes, place: int) -> int:
    end = data.index(b"\0", place + 64) + 1
    (points,) = struct.unpack_from("<Q", data, end)
    return end + 8 + 24 * points


def _after_point(data: bytes, place: int) -> int:
    (track,) = struct.unpack_from("<Q", data, place + 43)
    return place + 51 + 8 * track


def _read_pose(image: object) -> np.ndarray:
    """c2w (3, 4)."""
    c2w = image.cam_from_world().inverse().matrix()
    if not np.isfinite(c2w).all():
        raise VisionKitError("has a pose with numbers that are not finite")
    return c2w


def _read_camera(path: Path, camera: object) -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
    """K, (height, width) and distortion, after a look at the photograph's own size."""
    if camera.model_name not in _DISTORTION:
        raise VisionKitError(f"has a {camera.model_name} lens; undistort the capture with COLMAP's image_undistorter")
    height, width = stored_size(path)
    if not same_shape((height, width), (camera.height, camera.width)):
        raise VisionKitError(f"is {width}x{height}, but its camera {camera.width}x{camera.height}")
    distortion = np.zeros(8)
    places = _DISTORTION[camera.model_name]
    if places:
        distortion[list(places)] = camera.params[-len(places) :]
    if not np.isfinite(camera.params).all():
        raise VisionKitError("has a camera with numbers that are not finite")
    K, size = camera.calibration_matrix(), (camera.height, camera.width)
    check_lens(K, size)
    return K, size, distortion


def _visible(image: object, point_ids: np.ndarray) -> np.ndarray:
    found = (point.point3D_id for point in image.points2D if point.has_point3D())
    ids = np.array([number for number in found if number < 1 << 63], dtype=np.int64)  # larger ones are damage
    ids = np.intersect1d(ids, point_ids)  # sorted, each once
    return np.searchsorted(point_ids, ids)


def _files_below(folder: Path) -> dict[str, Path]:
    """Photographs by their path below the folder, as COLMAP names them."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file())
    files = {path.relative_to(folder).as_posix(): path for path in found if not path.name.startswith(".")}
    if not files:
        raise VisionKitError(f"{folder}: holds no photos; a capture needs the photos that its cameras were found from")
    return files
