"""DukeMTMC-reID (Ristani et al., ECCVW 2016; Zheng et al., ICCV 2017)."""

from visionkit.datasets.base import ReIDDataset
from visionkit.registry import DATASETS


@DATASETS.register_module()
class DukeMTMCreID(ReIDDataset):
    """DukeMTMC-reID: 1,812 people, 8 cameras, names like ``0005_c2_f0046985.jpg``. Withdrawn by its authors in 2019."""

    folder = "DukeMTMC-reID"
    folders = dict(train="bounding_box_train", query="query", gallery="bounding_box_test")
    published = dict(train=((702, 16522),), query=((702, 2228),), gallery=((1110, 17661),))
    ask = "nobody any more: its authors withdrew it in 2019"
    card = "dukemtmc_reid"
    stand_in = "python datasets/synthesize_reid.py --out ROOT"
    zero_is_distractor = True
