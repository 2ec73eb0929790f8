"""A folder of images a class, as ImageNet-1k is laid out for training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from visionkit.datasets.images import read_image
from visionkit.errors import VisionKitError
from visionkit.registry import DATASETS

CROP_SHARE = 0.875  # of the shorter side, in evaluation
BELOW_FULL = 9.99  # of 10: at full magnitude timm's posterising keeps 0 bits, which Pillow refuses
AUGMENTATION = dict(auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, re_prob=0.25, re_mode="pixel")


@DATASETS.register_module()
class ImageClasses(Dataset):
    """``root/train/<class>/*.jpg`` and ``root/val/<class>/*.jpg``.

    Training images are cropped, flipped, and changed by timm's RandAugment, colour jitter and random erasing, with the
    settings of DeiT (arXiv 2012.12877) that SOFT, MALA and NaLaFormer share; others are scaled and their middle taken.

    Args:
        root: the folder of both splits.
        split: ``"train"`` or ``"val"``.
        image_size: (height, width) of the crops.

    Raises:
        VisionKitError: a split is missing or holds no images, or its classes are not those of ``train``.
    """

    def __init__(self, root: str, split: str = "train", image_size: Sequence[int] = (224, 224)) -> None:
        self.folder = _folder(Path(root), split)
        self.classes = self.folder.classes
        if split != "train" and (Path(root) / "train").is_dir():
            expected = sorted(each.name for each in (Path(root) / "train").iterdir() if each.is_dir())
            if odd := sorted(set(self.classes) ^ set(expected)):
                raise VisionKitError(f"{root}: train and {split} differ in classes, {odd[0]} for one; they must agree")
        training = split == "train"
        augmentation = AUGMENTATION if training else dict(crop_pct=CROP_SHARE)
        self.transform = create_transform(
            (3, *image_size),
            is_training=training,
            interpolation="bicubic",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            **augmentation,
        )
        for step in self.transform.transforms:
            for operation in getattr(step, "ops", []):
                operation.magnitude_max = BELOW_FULL

    def __len__(self) -> int:
        return len(self.folder.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``image`` (3, H, W), ``label`` and ``path``."""
        path, label = self.folder.samples[index]
        return dict(image=self.transform(read_image(path)), label=label, path=path)


def _folder(root: Path, split: str) -> ImageFolder:
    if not (root / split).is_dir():
        raise VisionKitError(f"{root / split}: no such folder; expected {root}/{split}/<class>/*.jpg")
    try:
        return ImageFolder(root / split)
    except FileNotFoundError as error:  # torchvision's word for a class without images
        raise VisionKitError(f"{root / split}: {' '.join(str(error).split())[:200]}") from error
