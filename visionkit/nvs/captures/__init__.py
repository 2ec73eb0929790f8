"""Readers of captures: each brings its format into a [Scene]."""

import os
from pathlib import Path

from visionkit.errors import VisionKitError
from visionkit.nvs.captures.colmap import read_colmap
from visionkit.nvs.captures.photos import Photo, focal_from_exif, photos_in, read_photo
from visionkit.nvs.captures.scene import NormalisedScene, Scene
from visionkit.nvs.captures.transforms import read_transforms


def is_capture(path: str | os.PathLike) -> bool:
    """Whether a path is meant as a capture with cameras, not as photographs."""
    path = Path(path)
    return path.suffix == ".json" or (path / "transforms.json").is_file() or (path / "sparse").is_dir()


def read_capture(path: str | os.PathLike) -> Scene:
    """Reads a capture of any kind: a ``transforms.json`` or its folder, or MVImgNet's tree.

    Raises:
        VisionKitError: there is none, or it cannot be used.
    """
    path = Path(path)
    if not path.exists():
        raise VisionKitError(f"{path}: no such capture; give a folder with sparse/0 or a transforms.json")
    if path.suffix == ".json" or (path / "transforms.json").is_file():
        return read_transforms(path)
    return read_colmap(path)


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
