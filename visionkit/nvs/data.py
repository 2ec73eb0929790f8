"""Scenes for training and evaluation: MVImgNet's tree and ShapeNet-SRN, as samples of an input view and target views.

A sample is a dictionary of what [visionkit.nvs.model.NViST] reads: ``image`` (V, 3, H, W) in [0, 1], the input view
first; ``c2w`` (V, 3, 4) in the input view's frame; ``focal`` (V, 2); ``camera_params`` (2,); ``near_far`` (2,); and
``path``, the scene's name.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import print_log
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from visionkit.engine.config import check_choice, check_counts, given
from visionkit.errors import VisionKitError
from visionkit.files import beside
from visionkit.nvs.cameras import Camera, relative_to, rolled
from visionkit.nvs.captures.colmap import read_colmap
from visionkit.nvs.captures.photos import middle_of
from visionkit.nvs.captures.scene import CENTRES, ROWS, Scene
from visionkit.progress import progress
from visionkit.registry import DATASETS

# Raised whenever the cached numbers change their meaning.
CACHE_EDITION = 3
NEAR_QUANTILE, FAR_QUANTILE = 0.01, 0.99
TEST_CLASSES = "test_classes.json"


@dataclasses.dataclass(frozen=True)
class PosedScene:
    """A scene in the unit cube, without its points, and the distances between which it lies."""

    scene: Scene
    near: float
    far: float


class SceneViews(Dataset):
    """Samples of posed scenes.

    Args:
        scenes: the scenes.
        img_size: (height, width) of the views. A photograph of another shape is turned where one is portrait and the
            other landscape, and cropped in its middle.
        near_far: distances between which rays are sampled, one pair for all scenes.
        views: views of a training sample, the input view included; None gives evaluation samples, whose input is the
            middle view and whose targets are all others.
        include_input: the input view is a target too (the released evaluation).
        centre: the point of the scene to which the input view's distance is told to the model. ``viewed``: where the
            cameras look; a photograph tells how far that is but for its unit, so the distance tells the unit. ``cube``:
            the unit cube's centre (released), whose distance says little of it.
    """

    def __init__(
        self,
        scenes: list[PosedScene],
        img_size: tuple[int, int],
        near_far: tuple[float, float],
        views: int | None = 5,
        include_input: bool = False,
        centre: str = "viewed",
    ) -> None:
        if views is not None and views < 2:
            raise VisionKitError(f"views={views}: expected 2 or more, the input view and its targets")
        if centre not in CENTRES:
            raise VisionKitError(f"centre={centre!r}: expected one of {', '.join(CENTRES)}")
        self.scenes, self.img_size, self.near_far = scenes, tuple(img_size), near_far
        self.views, self.include_input, self.centre = views, include_input, centre
        self._told: set[Path] = set()

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        scene = self.scenes[index].scene
        found = self._readable(scene, self._choose(len(scene)))
        if self.views is not None:  # others take the places of those that cannot be read
            found = (found or self._readable(scene, range(len(scene)))) * self.views
        if len(found) < 2:
            raise VisionKitError(f"{scene.name}: {len(found)} of its photos can be read; restore them or remove it")
        rows, images, cameras = zip(*found[: self.views])
        distance = float(scene.distances(self.centre)[rows[0]])
        return dict(sample(np.stack(images), cameras, distance, self.near_far), path=scene.name)

    def _readable(self, scene: Scene, rows: Iterable[int]) -> list[tuple[int, np.ndarray, Camera]]:
        """Rows, pictures and cameras, without photographs that cannot be decoded, of which the log tells once."""
        found = []
        for row in rows:
            try:
                found.append((row, *fitted_view(scene, row, self.img_size)))
            except VisionKitError as error:
                if scene.paths[row] not in self._told:
                    self._told.add(scene.paths[row])
                    print_log(f"{error}; its view is left out", "current", logging.WARNING)
        return found

    def _choose(self, count: int) -> list[int]:
        """Rows of the input view and its targets."""
        if self.views is not None:  # targets are drawn with replacement and may be the input view
            return torch.randint(count, (self.views,)).tolist()
        middle = count // 2
        return [middle, *(row for row in range(count) if self.include_input or row != middle)]

    @property
    def distance(self) -> float:
        """Median distance of a camera from its scene's centre."""
        return float(np.median(np.concatenate([each.scene.distances(self.centre) for each in self.scenes])))


def sample(
    images: np.ndarray, cameras: Iterable[Camera], distance: float, near_far: tuple[float, float]
) -> dict[str, Tensor]:
    """What the model reads of one scene.

    Args:
        images: (V, H, W, 3) uint8, the input view first.
        cameras: cameras of the V views, in the scene's unit cube.
        distance: distance of the input view's camera from the scene's centre.
        near_far: distances between which rays are sampled, see [SceneViews].
    """
    cameras = list(cameras)
    c2w = relative_to(np.stack([camera.c2w for camera in cameras]), cameras[0].c2w, distance)
    return dict(
        image=torch.from_numpy(images).movedim(-1, 1).float() / 255,
        c2w=torch.from_numpy(c2w).float(),
        focal=torch.tensor([camera.focal for camera in cameras], dtype=torch.float32),
        camera_params=torch.tensor([distance, cameras[0].focal[1] / cameras[0].size[0]], dtype=torch.float32),
        near_far=torch.tensor(near_far, dtype=torch.float32),
    )


def fitted_view(scene: Scene, row: int, img_size: tuple[int, int]) -> tuple[np.ndarray, Camera]:
    """A photograph and its camera with a given number of pixels: turned, cropped in its middle, resized.

    Returns:
        image (H, W, 3) uint8 and its camera.
    """
    camera = scene.camera(row)
    if camera.size[1] * img_size[0] == camera.size[0] * img_size[1]:
        return scene.image(row, img_size), camera.resized(img_size)
    image = scene.image(row)
    camera = camera.resized(image.shape[:2])
    if (camera.size[1] - camera.size[0]) * (img_size[1] - img_size[0]) < 0:  # one is portrait, the other landscape
        camera, image = rolled(camera), np.rot90(image)
    image = middle_of(image, img_size)
    camera = dataclasses.replace(camera, size=image.shape[:2]).resized(img_size)
    picture = Image.fromarray(image).resize(img_size[::-1], Image.Resampling.LANCZOS)
    return np.asarray(picture), camera


@DATASETS.register_module()
class MVImgNet(SceneViews):
    """MVImgNet's tree, ``<root>/<class>/<instance>/{images,sparse/0}``.

    Cameras, near and far are read once and kept in ``<root>/visionkit_<split>.npz``, until a scene's model or its
    folder of photographs changes. A scene that cannot be used is left out; the log and that file tell its name and the
    reason. Rays are sampled between the nearest and the farthest distance of the training scenes (quantiles 1% and
    99%), in the test split too.

    Args:
        root: the folder.
        split: ``train`` or ``test``. Test are the classes that ``<root>/test_classes.json`` lists; without that file,
            in each class every ``test_every``-th scene by name, from the first.
        img_size: see [SceneViews].
        views: number of views of a training sample, see [SceneViews]; the test split gives evaluation samples.
        include_input, centre: see [SceneViews].
        images: folder of the photographs in a scene; they may be smaller than COLMAP's.
        test_every: step between test scenes of a class, see ``split``.
        max_scenes: use so many scenes, evenly spread by name; None uses all.
    """

    def __init__(
        self,
        root: str,
        split: str = "train",
        img_size: tuple[int, int] = (160, 90),
        views: int | None = 5,
        include_input: bool = False,
        images: str = "images",
        test_every: int = 100,
        max_scenes: int | None = None,
        centre: str = "viewed",
    ) -> None:
        check_choice("MVImgNet", ("train", "test"), split=split)
        check_counts("MVImgNet", 1, test_every=test_every, **given(max_scenes=max_scenes))
        folders = _split_folders(Path(root), test_every)
        _check_split(Path(root), folders, split, test_every)
        read = lambda which: _cached(Path(root), which, folders[which], images)
        train = read("train")
        near = float(np.quantile([each.near for each in train], NEAR_QUANTILE))
        far = float(np.quantile([each.far for each in train], FAR_QUANTILE))
        scenes = train if split == "train" else read(split)
        if max_scenes is not None and max_scenes < len(scenes):
            scenes = [scenes[i] for i in np.linspace(0, len(scenes) - 1, max_scenes).round().astype(int)]
        super().__init__(scenes, img_size, (near, far), views if split == "train" else None, include_input, centre)


def _split_folders(root: Path, test_every: int) -> dict[str, list[str]]:
    """Names ``class/instance`` of both splits."""
    if not root.is_dir():
        raise VisionKitError(f"{root}: no such folder; expected MVImgNet's tree, see datasets/mvimgnet.md")
    classes = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    listed = _test_classes(root / TEST_CLASSES)
    folders: dict[str, list[str]] = dict(train=[], test=[])
    for name in classes:
        found = (path.name for path in (root / name).iterdir() if path.is_dir() and not path.name.startswith("."))
        for i, instance in enumerate(sorted(found)):
            is_test = name in listed if listed is not None else i % test_every == 0
            folders["test" if is_test else "train"].append(f"{name}/{instance}")
    return folders


def _test_classes(file: Path) -> list[str] | None:
    """The classes that the file lists, if there is one."""
    try:
        listed = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise VisionKitError(f"{file}: is not valid JSON ({error}); restore it") from error
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise VisionKitError(f'{file}: expected a list of class names, as ["chair", "shoe"]')
    return listed


def _check_split(root: Path, folders: dict[str, list[str]], split: str, test_every: int) -> None:
    """Raises VisionKitError if no scene falls to the split, or none to the training split, which tells near and far."""
    empty = next((name for name in ("train", split) if not folders[name]), None)
    if empty is None:
        return
    if (root / TEST_CLASSES).is_file():
        raise VisionKitError(
            f"{root / TEST_CLASSES}: there is no scene of the {empty} split; list some classes of {root}, not all"
        )
    if not folders["test"]:
        raise VisionKitError(f"{root}: holds no scene; expected MVImgNet's tree, see datasets/mvimgnet.md")
    raise VisionKitError(
        f"{root}: there is no scene of the train split, for the first scene of each class and every {test_every}th"
        f" after it are of the test split; list the test classes in {root / TEST_CLASSES}, or add scenes to the classes"
    )


def _cached(root: Path, split: str, folders: list[str], images: str) -> list[PosedScene]:
    """The scenes of a split: from its file where that is of these very folders, else read and written there."""
    states = [_state(root / folder, images) for folder in folders]
    key = hashlib.sha256(json.dumps([CACHE_EDITION, images, folders, states]).encode()).hexdigest()[:16]
    file = root / f"visionkit_{split}.npz"
    found = _load(file, root, key, images)
    scenes, skipped = found or read_scenes(root, folders, lambda folder: read_colmap(folder, images))
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


def read_scenes(
    root: Path, folders: list[str], read: Callable[[Path], Scene]
) -> tuple[list[PosedScene], list[tuple[str, str]]]:
    """Reads and normalises scenes.

    Returns:
        The scenes without their points, and (name, reason) of those left out.
    """
    scenes, skipped = [], []
    with progress("reading scenes", len(folders)) as advance:
        for name in folders:
            try:
                scenes.append(posed(read(root / name), name))
            except VisionKitError as error:
                skipped.append((name, str(error)))
            advance()
    return scenes, skipped


def posed(scene: Scene, name: str) -> PosedScene:
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
    """What [read_scenes] gave, if the file holds it under this key."""
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


@DATASETS.register_module()
class ShapeNetSRN(SceneViews):
    """Cars or chairs as rendered for Scene Representation Networks: ``<root>/cars_train/<id>/{rgb,pose}``.

    Backgrounds are white. Poses are taken as they are: x right, y down, z forward, around the object's centre.

    Args:
        root: folder that holds ``<kind>_train``, ``<kind>_val`` and ``<kind>_test``, or the one of them that ``split``
            names; one more folder in between is fine.
        kind: ``cars`` or ``chairs``.
        split: ``train``, ``val`` or ``test``.
        img_size: see [SceneViews].
        views, include_input: see [SceneViews]; ``views`` is None outside of the train split.
        input_view: the input view of an evaluation sample; 64 is customary.
    """

    NEAR_FAR = dict(cars=(0.8, 1.8), chairs=(1.25, 2.75))
    # All white.
    BROKEN = ("876d92ce6a0e4bf399588eee976baae",)

    def __init__(
        self,
        root: str,
        kind: str = "cars",
        split: str = "train",
        img_size: tuple[int, int] = (128, 128),
        views: int | None = 5,
        include_input: bool = False,
        input_view: int = 64,
    ) -> None:
        check_choice("ShapeNetSRN", self.NEAR_FAR, kind=kind)
        check_choice("ShapeNetSRN", ("train", "val", "test"), split=split)
        folder = _srn_folder(Path(root), f"{kind}_{split}")
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        near, far = self.NEAR_FAR[kind]
        scenes = []
        for name in names:
            if name in self.BROKEN:
                print_log(f"{folder / name}: left out, all its images are white", "current", logging.WARNING)
                continue
            try:
                scenes.append(PosedScene(read_srn(folder / name), near, far))
            except VisionKitError as error:
                print_log(f"{folder}: scene {name} is left out: {error}", "current", logging.WARNING)
        if not scenes:
            raise VisionKitError(f"{folder}: no scene can be used; see the log for the reasons")
        super().__init__(scenes, img_size, (near, far), views if split == "train" else None, include_input, "cube")
        self.input_view = input_view

    def _choose(self, count: int) -> list[int]:
        if self.views is not None:
            return super()._choose(count)
        chosen = min(self.input_view, count - 1)
        return [chosen, *(row for row in range(count) if self.include_input or row != chosen)]


def _srn_folder(root: Path, name: str) -> Path:
    """The folder of that name that holds objects: in ``root``, ``root`` itself, or one folder deeper."""
    itself = [root] if name in (root.name, root.resolve().name) else []  # by its own name where it is a link
    for place in (root / name, *itself, *sorted(root.glob(f"*/{name}"))):
        if any(place.glob("*/pose")):
            return place
    raise VisionKitError(f"{root}: holds no {name}; expected ShapeNet-SRN's tree, see datasets/shapenet_srn.md")


def read_srn(folder: Path) -> Scene:
    """One object of ShapeNet-SRN. Images and poses are joined by their stem.

    Raises:
        VisionKitError: a file is missing or cannot be read.
    """
    images = {path.stem: path for path in (folder / "rgb").glob("*.png")}
    poses = {path.stem: path for path in (folder / "pose").glob("*.txt")}
    stems = sorted(set(images) & set(poses))
    if len(stems) < 2:
        raise VisionKitError(f"{folder}: expected rgb/*.png and pose/*.txt of the same names, found {len(stems)} pairs")
    try:
        lines = (folder / "intrinsics.txt").read_text().split("\n")
        focal, cx, cy = (float(value) for value in lines[0].split()[:3])
        height, width = (int(float(value)) for value in [line for line in lines[1:] if line.strip()][-1].split())
        c2w = np.stack([np.loadtxt(poses[stem]).reshape(4, 4)[:3] for stem in stems])
    except (OSError, ValueError, IndexError) as error:
        raise VisionKitError(f"{folder}: intrinsics.txt or a pose cannot be read ({error}); restore it") from error
    count = len(stems)
    return Scene(
        name=folder.name,
        names=tuple(images[stem].name for stem in stems),
        paths=tuple(images[stem] for stem in stems),
        K=np.tile(np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1.0]]), (count, 1, 1)),
        sizes=np.tile(np.array([height, width]), (count, 1)),
        c2w=c2w,
        distortion=np.zeros((count, 8)),
        points=np.zeros((0, 3)),
        visible=(np.zeros(0, int),) * count,
        skipped=tuple((name, "has no pose") for name in sorted(set(images) - set(poses))),
    )
