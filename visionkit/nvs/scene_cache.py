"""Scenes of a split of MVImgNet's tree, read once and kept in a file until one of them changes."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.logging import print_log

from visionkit.errors import VisionKitError
from visionkit.files import beside
from visionkit.nvs.captures.colmap import read_colmap
from visionkit.nvs.captures.scene import ROWS, Scene
from visionkit.progress import progress

# Raised whenever the cached numbers change their meaning.
CACHE_EDITION = 3


class PosedScene(NamedTuple):
    """A scene in the unit cube, without its points, and the distances between which it lies."""

    scene: Scene
    near: float
    far: float


def cached_scenes(root: Path, split: str, folders: list[str], images: str) -> list[PosedScene]:
    """The scenes of a split: from its file where that is of these very folders, else read and written there."""
    states = [_state(root / folder, images) for folder in folders]
    key = hashlib.sha256(json.dumps([CACHE_EDITION, images, folders, states]).encode()).hexdigest()[:16]
    file = root / f"visionkit_{split}.npz"
    found = _load(file, root, key, images)
    scenes, skipped = found or _read(root, folders, images)
    if found is None:
        _store(file, scenes, skipped, key)
    _tell_skipped(root, skipped, len(folders))
    if not scenes:
        raise VisionKitError(f"{root}: no scene of the {split} split can be used; see the log for the reasons")
    return scenes


def _state(folder: Path, images: str) -> list:
    """What tells that a scene is still as it was: sizes and times of its model's files, and its photographs' folder's.

    A folder's time moves with each photograph that comes, goes or gets another name.
    """
    model = [path for path in sorted(folder.glob("sparse/**/*")) if path.is_file()]
    files = [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in model]
    return files + [(folder / images).stat().st_mtime_ns if (folder / images).is_dir() else None]


def _read(root: Path, folders: list[str], images: str) -> tuple[list[PosedScene], list[tuple[str, str]]]:
    """The scenes, normalised and without their points, and (name, reason) of those left out."""
    scenes, skipped = [], []
    with progress("reading scenes", len(folders)) as advance:
        for name in folders:
            try:
                scenes.append(_posed(read_colmap(root / name, images), name))
            except VisionKitError as error:
                skipped.append((name, str(error)))
            advance()
    return scenes, skipped


def _posed(scene: Scene, name: str) -> PosedScene:
    """A scene, normalised and without its points. Raises VisionKitError if it has one view alone or no extent."""
    if len(scene) < 2:
        raise VisionKitError(f"{name}: has one view alone; give 2 or more")
    normal = scene.normalised()
    bare = dataclasses.replace(
        normal.scene, name=name, points=np.zeros((0, 3)), visible=(np.zeros(0, int),) * len(scene)
    )
    return PosedScene(bare, normal.near, normal.far)


def _tell_skipped(root: Path, skipped: list[tuple[str, str]], total: int) -> None:
    for name, reason in skipped:
        print_log(f"{root}: scene {name} is left out: {reason}", "current", logging.WARNING)
    if skipped:
        print_log(f"{root}: {len(skipped)} of {total} scenes are left out", "current", logging.WARNING)


def _store(file: Path, scenes: list[PosedScene], skipped: list[tuple[str, str]], key: str) -> None:
    table = dict(
        key=key,
        skipped=skipped,
        scenes=[dict(name=each.scene.name, names=each.scene.names, near=each.near, far=each.far) for each in scenes],
    )
    arrays = {
        name: np.concatenate([getattr(each.scene, name) for each in scenes]) if scenes else np.zeros(0) for name in ROWS
    }
    try:
        with beside(file) as temporary, open(temporary, "wb") as opened:
            np.savez(opened, table=np.frombuffer(json.dumps(table).encode(), dtype=np.uint8), **arrays)
    except VisionKitError as error:
        print_log(f"{error}; scenes will be read anew", "current", logging.WARNING)


def _load(file: Path, root: Path, key: str, images: str) -> tuple[list[PosedScene], list[tuple[str, str]]] | None:
    """What [_read] gave, if the file holds it under this key."""
    try:
        with np.load(file) as data:
            table = json.loads(data["table"].tobytes())
            arrays = {name: data[name] for name in ROWS}
            if table["key"] != key:
                return None
    except Exception:  # absent, or damaged in one of many ways, which is as good as absent
        return None
    scenes, start = [], 0
    for row in table["scenes"]:
        rows = slice(start, start + len(row["names"]))
        start = rows.stop
        scene = Scene(
            name=row["name"],
            names=tuple(row["names"]),
            paths=tuple(root / row["name"] / images / name for name in row["names"]),
            points=np.zeros((0, 3)),
            visible=(np.zeros(0, int),) * len(row["names"]),
            **{name: array[rows] for name, array in arrays.items()},
        )
        scenes.append(PosedScene(scene, row["near"], row["far"]))
    return scenes, [(name, reason) for name, reason in table["skipped"]]
