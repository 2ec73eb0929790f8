"""CUHK03-NP: CUHK03 (Li et al., CVPR 2014) under the 767/700 protocol of Zhong et al., CVPR 2017."""

from typing import Any

from visionkit.datasets.base import ReIDDataset
from visionkit.errors import VisionKitError
from visionkit.registry import DATASETS


@DATASETS.register_module()
class CUHK03NP(ReIDDataset):
    """CUHK03-NP: 1,467 people, 2 cameras, names like ``0200_c2_1931.png``.

    Args:
        boxes: "detected" (by a pedestrian detector, the usual test) or "labeled" (by hand).
        args, kwargs: See :class:`ReIDDataset`.
    """

    folder = "cuhk03-np"
    ask = "https://github.com/zhunzhong07/person-re-ranking (CUHK03-NP)"
    card = "cuhk03_np"

    def __init__(self, *args: Any, boxes: str = "detected", **kwargs: Any) -> None:
        if boxes not in ("detected", "labeled"):
            raise VisionKitError(f'CUHK03NP: boxes={boxes!r}: expected "detected" or "labeled"')
        self.folders = dict(train=f"{boxes}/bounding_box_train", query=f"{boxes}/query")
        self.folders["gallery"] = f"{boxes}/bounding_box_test"
        train, gallery = (7365, 5332) if boxes == "detected" else (7368, 5328)
        self.published = dict(train=((767, train),), query=((700, 1400),), gallery=((700, gallery),))
        super().__init__(*args, **kwargs)
