"""Market-1501 (Zheng et al., ICCV 2015)."""

from visionkit.datasets.base import ReIDDataset
from visionkit.registry import DATASETS


@DATASETS.register_module()
class Market1501(ReIDDataset):
    """Market-1501: 1,501 people, 6 cameras, names like ``0002_c1s1_000451_03.jpg``.

    Junk detections (-1) are dropped; distractors (0000) stay in the gallery as negatives.
    """

    folder = "Market-1501-v15.09.15"
    folders = dict(train="bounding_box_train", query="query", gallery="bounding_box_test")
    published = dict(train=((751, 12936),), query=((750, 3368),), gallery=((751, 15913),))
    ask = "its authors (https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html)"
    card = "market1501"
    stand_in = "python datasets/synthesize_reid.py --out ROOT"
    zero_is_distractor = True
