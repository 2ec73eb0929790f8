"""ShapeNet-SRN as a data set."""

import logging
from pathlib import Path

from mmengine.logging import print_log

from visionkit.checks import check_choice
from visionkit.errors import VisionKitError
from visionkit.nvs.captures.srn import read_srn
from visionkit.nvs.data import SceneViews
from visionkit.registry import DATASETS


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
        scenes = []
        for name in names:
            if name in self.BROKEN:
                print_log(f"{folder / name}: left out, all its images are white", "current", logging.WARNING)
                continue
            try:
                scenes.append(read_srn(folder / name))
            except VisionKitError as error:
                print_log(f"{folder}: scene {name} is left out: {error}", "current", logging.WARNING)
        if not scenes:
            raise VisionKitError(f"{folder}: no scene can be used; see the log for the reasons")
        views = views if split == "train" else None
        super().__init__(scenes, img_size, self.NEAR_FAR[kind], views, include_input, "cube")
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
