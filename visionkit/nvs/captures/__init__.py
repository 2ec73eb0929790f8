"""Readers of captures: each brings its format into a [Scene]."""

import dataclasses
import os
from pathlib import Path

from visionkit.errors import VisionKitError
from visionkit.nvs.captures.colmap import read_colmap
from visionkit.nvs.captures.photos import Photo, check_decodes, focal_from_exif, photos_in, read_photo
from visionkit.nvs.captures.scene import NormalisedScene, Scene
from visionkit.nvs.captures.transforms import read_transforms


def is_capture(path: str | os.PathLike) -> bool:
    """Whether a path is meant as a capture with cameras, not as photographs."""
    return _has_transforms(Path(path)) or (Path(path) / "sparse").is_dir()


def read_capture(path: str | os.PathLike) -> Scene:
    """Reads a capture of any kind: a ``transforms.json`` or its folder, or MVImgNet's tree.

    Raises:
        VisionKitError: there is none, or it cannot be used.
    """
    path = Path(path)
    if not path.exists():
        raise VisionKitError(f"{path}: no such capture; give a folder with sparse/0 or a transforms.json")
    return without_damaged(read_transforms(path) if _has_transforms(path) else read_colmap(path))


def _has_transforms(path: Path) -> bool:
    return path.suffix == ".json" or (path / "transforms.json").is_file()


def without_damaged(scene: Scene) -> Scene:
    """The scene without photographs that cannot be decoded to their end, which are listed in ``skipped``.

    Raises:
        VisionKitError: none is left.
    """
    reasons = {}
    for row, path in enumerate(scene.paths):
        try:
            check_decodes(path)
        except VisionKitError as error:
            reasons[row] = str(error)
    if len(reasons) == len(scene):
        raise VisionKitError(f"{scene.name}: none of its {len(scene)} photos can be decoded; restore them")
    skipped = (*scene.skipped, *((scene.names[row], reason) for row, reason in reasons.items()))
    return dataclasses.replace(scene.subset([row for row in range(len(scene)) if row not in reasons]), skipped=skipped)


__all__ = [
    "NormalisedScene",
    "Photo",
    "Scene",
    "focal_from_exif",
    "is_capture",
    "photos_in",
    "read_capture",
    "read_colmap",
    "read_photo",
    "read_transforms",
]
