"""Data set classes, transforms and samplers."""

from visionkit.datasets.base import ReIDDataset, Sample
from visionkit.datasets.cuhk03_np import CUHK03NP
from visionkit.datasets.dukemtmc_reid import DukeMTMCreID
from visionkit.datasets.folder import FolderReID
from visionkit.datasets.image_classes import ImageClasses
from visionkit.datasets.images import read_image
from visionkit.datasets.market1501 import Market1501
from visionkit.datasets.msmt17 import MSMT17
from visionkit.datasets.samplers import RandomMultipleGallerySampler, RepeatedAugmentationSampler
from visionkit.datasets.transforms import build_transforms, test_transforms, train_transforms
from visionkit.datasets.unlabelled import UnlabelledFolder
from visionkit.datasets.vehicle_id import VehicleID
from visionkit.datasets.veri776 import VeRi776
from visionkit.datasets.veri_wild import VERIWild
from visionkit.datasets.wrappers import PseudoLabelDataset, QueryGallery

__all__ = [
    "CUHK03NP",
    "DukeMTMCreID",
    "FolderReID",
    "ImageClasses",
    "MSMT17",
    "Market1501",
    "PseudoLabelDataset",
    "QueryGallery",
    "RandomMultipleGallerySampler",
    "ReIDDataset",
    "RepeatedAugmentationSampler",
    "Sample",
    "UnlabelledFolder",
    "VERIWild",
    "VeRi776",
    "VehicleID",
    "build_transforms",
    "read_image",
    "test_transforms",
    "train_transforms",
]
