"""VERI-Wild (Lou et al., CVPR 2019)."""

import re
from pathlib import Path
from typing import Any

from visionkit.checks import check_choice
from visionkit.datasets.base import ReIDDataset, Sample
from visionkit.datasets.lists import read_lines
from visionkit.errors import VisionKitError
from visionkit.registry import DATASETS


@DATASETS.register_module()
class VERIWild(ReIDDataset):
    """VERI-Wild: 40,671 vehicles, 174 cameras; lists of lines ``<vehicle>/<image>.jpg``.

    Cameras stand in ``vehicle_info.txt``, lines like ``00001/000001;<camera>;<time>;...``. Its first line is a header
    in some copies and a vehicle in others: what does not start like a vehicle is the header.

    Args:
        subset: Test vehicles: 3000, 5000 or 10000.
        args, kwargs: See :class:`ReIDDataset`.
    """

    folder = "VERI-Wild"
    ask = "its authors (https://github.com/PKU-IMRE/VERI-Wild)"
    card = "veri_wild"
    galleries = {3000: (38861, 38816), 5000: (64389,), 10000: (128517,)}

    def __init__(self, *args: Any, subset: int = 3000, **kwargs: Any) -> None:
        check_choice("VERIWild", self.galleries, subset=subset)
        self.subset = subset
        self.published = dict(
            train=((30671, 277797), (30671, 277794)),
            query=((subset, subset),),
            gallery=tuple((subset, images) for images in self.galleries[subset]),
        )
        super().__init__(*args, **kwargs)

    def find_root(self, root: Path) -> Path:
        """The folder that holds the tree. Test lists go by ``test_3000_query.txt`` or ``test_3000_id_query.txt``."""
        self.test_list = f"test_{self.subset}"
        if any(
            (place / "train_test_split" / f"{self.test_list}_id.txt").exists() for place in (root, root / self.folder)
        ):
            self.test_list += "_id"
        return super().find_root(root)

    def tree(self) -> tuple[str, ...]:
        """The image folder and the lists."""
        names = ("train_list", self.test_list, f"{self.test_list}_query", "vehicle_info")
        return ("images", *(f"train_test_split/{name}.txt" for name in names))

    def scan(self, split: str) -> list[Sample]:
        """Rows of the split's list with the cameras of vehicle_info.txt."""
        cameras = self._cameras()
        lists = dict(train="train_list", query=f"{self.test_list}_query", gallery=self.test_list)
        return [
            self._sample(line, place, cameras)
            for line, place in read_lines(self.root / "train_test_split" / f"{lists[split]}.txt")
        ]

    def _sample(self, line: str, place: str, cameras: dict[str, int]) -> Sample:
        image = line.split()[0].removesuffix(".jpg")
        if re.fullmatch(r"\d+/\w+", image) is None:
            raise VisionKitError(f"{place}: expected `<vehicle>/<image>.jpg`, found {line[:60]!r}; restore the list")
        if image not in cameras:
            raise VisionKitError(f"{place}: {image} has no line in vehicle_info.txt; get the complete file")
        return Sample(str(self.root / "images" / f"{image}.jpg"), int(image.split("/")[0]), cameras[image])

    def _cameras(self) -> dict[str, int]:
        cameras = {}
        for number, (line, place) in enumerate(read_lines(self.root / "train_test_split" / "vehicle_info.txt")):
            match = re.match(r"(\d+/\w+)(?:\.jpg)?;(\d+)(?:;|$)", line)
            if match:
                cameras[match[1]] = int(match[2]) - 1
            elif number > 0:  # the first line may be a header
                raise VisionKitError(
                    f"{place}: expected `<vehicle>/<image>;<camera>;...`, found {line[:60]!r}; restore the list"
                )
        return cameras
