"""Images by camera, and unaligned pairs of images from two of them."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from visionkit.datasets.images import read_image
from visionkit.errors import VisionKitError
from visionkit.registry import DATASETS


def camera_images(dataset: dict[str, Any], include_test: bool = False) -> dict[int, list[str]]:
    """The image files of a re-identification data set by their 0-based camera.

    Args:
        dataset: Config of a data set of `visionkit.datasets`, without its split.
        include_test: Whether query and gallery images count too; distractors never do.
    """
    merged = dict(include_test=True) if include_test else {}
    by_camera: dict[int, list[str]] = {}
    for sample in DATASETS.build(dict(dataset, split="train", **merged)).samples:
        by_camera.setdefault(sample.camid, []).append(sample.path)
    return dict(sorted(by_camera.items()))


class UnalignedPairs(Dataset):
    """Every image of the larger side once, each with a random image of the other side.

    An item is ``dict(a=FloatTensor(3, H, W), b=FloatTensor(3, H, W), path=str, path_b=str)`` with values in [-1, 1].
    All randomness comes from torch's global generator. An image that cannot be read is replaced by another of its
    side, with a warning that names it.

    Args:
        a, b: The files of both sides.
        load_size: Images are resized to this (height, width), bicubic ...
        image_size: ... and cropped to this one at a random place, then flipped with probability 1/2.
    """

    def __init__(
        self,
        a: Sequence[str],
        b: Sequence[str],
        load_size: Sequence[int] = (286, 286),
        image_size: Sequence[int] = (256, 256),
    ) -> None:
        self.a, self.b = a, b
        self.transform = v2.Compose(
            [
                v2.Resize(list(load_size), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                v2.RandomCrop(list(image_size)),
                v2.RandomHorizontalFlip(),
                v2.Lambda(image_to_tensor),
            ]
        )

    def __repr__(self) -> str:
        return f"UnalignedPairs({len(self.a)} images, {len(self.b)} images)"  # in the log of a run's settings

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item ``index``; its smaller side is drawn at random."""
        a_is_larger = len(self.a) >= len(self.b)
        a, path_a = self._load(self.a, index if a_is_larger else _random_place(self.a))
        b, path_b = self._load(self.b, _random_place(self.b) if a_is_larger else index)
        return dict(a=a, b=b, path=path_a, path_b=path_b)

    def __len__(self) -> int:
        return max(len(self.a), len(self.b))

    def _load(self, paths: Sequence[str], index: int) -> tuple[Tensor, str]:
        for _ in range(10):
            image = read_or_warn(paths[index])
            if image is not None:
                return self.transform(image), paths[index]
            index = _random_place(paths)
        raise VisionKitError(f"{Path(paths[index]).parent}: ten images in a row cannot be read; check the data set")


def _random_place(paths: Sequence[str]) -> int:
    return int(torch.randint(len(paths), ()))


def read_or_warn(path: str | Path) -> Image.Image | None:
    """An image as RGB, or None with a warning where the file is damaged."""
    try:
        return read_image(str(path))
    except VisionKitError as error:
        print_log(f"{error}; it is left out", "current", logging.WARNING)
        return None


def image_to_tensor(image: Image.Image) -> Tensor:
    """A PIL image as (3, H, W) in [-1, 1]: mean 0.5 and standard deviation 0.5."""
    return v2.functional.pil_to_tensor(image).float() / 127.5 - 1.0


def tensor_to_image(tensor: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] as a PIL image: the inverse of `image_to_tensor`, with rounding."""
    return v2.functional.to_pil_image(((tensor.float().cpu() + 1.0) * 127.5).round().clamp(0, 255).byte())
