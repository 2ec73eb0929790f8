"""MVImgNet's tree as a data set."""

import json
from pathlib import Path

import numpy as np

from visionkit.checks import check_choice, check_counts
from visionkit.errors import VisionKitError
from visionkit.nvs.data import SceneViews
from visionkit.nvs.scene_cache import cached_scenes
from visionkit.registry import DATASETS

NEAR_QUANTILE, FAR_QUANTILE = 0.01, 0.99
TEST_CLASSES = "test_classes.json"


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
        centre: str = "viewed",
    ) -> None:
        check_choice("MVImgNet", ("train", "test"), split=split)
        check_counts("MVImgNet", 1, test_every=test_every)
        folders = _split_folders(Path(root), test_every)
        _check_split(Path(root), folders, split, test_every)
        read = lambda which: cached_scenes(Path(root), which, folders[which], images)
        train = read("train")
        near = float(np.quantile([each.near for each in train], NEAR_QUANTILE))
        far = float(np.quantile([each.far for each in train], FAR_QUANTILE))
        scenes = train if split == "train" else read(split)
        views = views if split == "train" else None
        super().__init__([each.scene for each in scenes], img_size, (near, far), views, include_input, centre)


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
