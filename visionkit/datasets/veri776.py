"""VeRi-776 (Liu et al., ECCV 2016)."""

from visionkit.datasets.base import ReIDDataset
from visionkit.registry import DATASETS


@DATASETS.register_module()
class VeRi776(ReIDDataset):
    """VeRi-776: 776 vehicles, 20 cameras, names like ``0001_c001_00016450_0.jpg``; queries lie in the gallery too."""

    folder = "VeRi"
    folders = dict(train="image_train", query="image_query", gallery="image_test")
    published = dict(train=((576, 37778), (576, 37746)), query=((200, 1678),), gallery=((200, 11579),))
    ask = "its authors (https://vehiclereid.github.io/VeRi)"
    card = "veri776"
