"""Training and test transforms of CORE-ReID, and the two lists of them that configs use.

A list runs on one PIL RGB image in order. Until ``ToTensor`` an image stays a PIL image (uint8, cheap to crop and
flip), after it a float tensor (3, H, W). All randomness comes from torch's global generator.

Source: CORE-ReID (arXiv 2508.03064); local grayscale: Gong et al., arXiv 2101.08533; random erasing: Zhong et al.,
AAAI 2020.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionkit.checks import check_counts, check_numbers
from visionkit.datasets.images import resize
from visionkit.errors import VisionKitError
from visionkit.registry import TRANSFORMS

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Of random rectangles: their share of the image's area, and height / width.
AREA, ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)


def build_transforms(transforms: Sequence[dict | Callable] | None) -> list[Callable]:
    """Build a list of registry dicts and callables; None gives an empty list, which leaves the PIL image as it is."""
    return [TRANSFORMS.build(item) if isinstance(item, dict) else item for item in transforms or []]


def train_transforms(
    size: tuple[int, int],
    *,
    pad: int = 10,
    local_grayscale: float = 0.4,
    grayscale: float = 0.0,
    erasing: float = 0.0,
    released: bool = False,
) -> list[dict]:
    """Training list of CORE-ReID: source pre-training as it stands, target fine-tuning with ``erasing=0.5``.

    Args:
        size: (H, W) of the network's input in pixels.
        pad: Edge padding before the random crop, pixels.
        local_grayscale: Probability of a grey rectangle.
        grayscale: Probability of a wholly grey image (0.05 in CORE-ReID V2).
        erasing: Probability of random erasing; 0 leaves it out.
        released: Grey rectangles drawn as the released code draws them, height and width confused.

    Returns:
        Registry dicts, to be put in a config as ``transforms``.
    """
    steps = [
        dict(type="visionkit.Resize", size=tuple(size)),
        dict(type="visionkit.RandomHorizontalFlip", prob=0.5),
        dict(type="visionkit.Pad", padding=pad),
        dict(type="visionkit.RandomCrop", size=tuple(size)),
    ]
    if local_grayscale:
        steps.append(dict(type="visionkit.RandomLocalGrayscale", prob=local_grayscale, released=released))
    if grayscale:
        steps.append(dict(type="visionkit.RandomGrayscale", prob=grayscale))
    steps += [dict(type="visionkit.ToTensor"), dict(type="visionkit.Normalize")]
    if erasing:
        steps.append(dict(type="visionkit.RandomErasing", prob=erasing))
    return steps


def test_transforms(size: tuple[int, int]) -> list[dict]:
    """Test list: resize to (H, W), tensor, ImageNet normalisation."""
    return [
        dict(type="visionkit.Resize", size=tuple(size)),
        dict(type="visionkit.ToTensor"),
        dict(type="visionkit.Normalize"),
    ]


test_transforms.__test__ = False  # not a test, whatever its name tells pytest


def _chance(prob: float) -> bool:
    return prob > 0 and torch.rand(()).item() < prob


@TRANSFORMS.register_module()
class Resize:
    """Bicubic resize of a PIL image to ``size`` = (H, W); free when it already has that size."""

    def __init__(self, size: Sequence[int]) -> None:
        self.height, self.width = size

    def __call__(self, image: Image.Image) -> Image.Image:
        return resize(image, self.height, self.width)


@TRANSFORMS.register_module()
class RandomHorizontalFlip:
    """Mirror a PIL image with probability ``prob``."""

    def __init__(self, prob: float = 0.5) -> None:
        check_numbers("RandomHorizontalFlip", 0, 1, prob=prob)
        self.prob = prob

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if _chance(self.prob) else image


@TRANSFORMS.register_module()
class Pad:
    """Repeat the border pixels of a PIL image ``padding`` times on each side.

    By pasting stretched borders, which takes a quarter of the time of torchvision's edge padding.
    """

    def __init__(self, padding: int = 10) -> None:
        check_counts("Pad", 0, padding=padding)
        self.padding = padding

    def __call__(self, image: Image.Image) -> Image.Image:
        pad, (width, height) = self.padding, image.size
        if pad == 0:
            return image
        out = Image.new(image.mode, (width + 2 * pad, height + 2 * pad))
        out.paste(image, (pad, pad))
        for y, to in ((0, 0), (height - 1, height + pad)):
            out.paste(_stretch(image.crop((0, y, width, y + 1)), (width, pad)), (pad, to))
        for x, to in ((pad, 0), (width + pad - 1, width + pad)):
            out.paste(_stretch(out.crop((x, 0, x + 1, out.height)), (pad, out.height)), (to, 0))
        return out


@TRANSFORMS.register_module()
class RandomCrop:
    """Cut a window of ``size`` = (H, W) at a uniform place of a PIL image at least that large."""

    def __init__(self, size: Sequence[int]) -> None:
        self.height, self.width = size

    def __call__(self, image: Image.Image) -> Image.Image:
        spare_x, spare_y = image.width - self.width, image.height - self.height
        if spare_x < 0 or spare_y < 0:
            raise VisionKitError(
                f"RandomCrop: an image of {image.height}x{image.width} cannot give a {self.height}x{self.width} crop; "
                "put Resize and Pad before it"
            )
        x, y = _place(spare_x), _place(spare_y)
        return image.crop((x, y, x + self.width, y + self.height))


@TRANSFORMS.register_module()
class RandomGrayscale:
    """Replace a PIL image by its luminance (three equal channels) with probability ``prob``."""

    def __init__(self, prob: float = 0.05) -> None:
        check_numbers("RandomGrayscale", 0, 1, prob=prob)
        self.prob = prob

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.convert("L").convert("RGB") if _chance(self.prob) else image


@TRANSFORMS.register_module()
class RandomLocalGrayscale:
    """Replace a random rectangle of a PIL image by its luminance (arXiv 2101.08533).

    Args:
        prob: Probability that an image gets a rectangle.
        released: Draw as the released CORE-ReID code does, which bounds the rectangle's height by the image's width
            and its width by the height: 3 of 10 stick out and are cut, so the mean share falls from 0.20 to 0.15.
    """

    def __init__(self, prob: float = 0.4, released: bool = False) -> None:
        check_numbers("RandomLocalGrayscale", 0, 1, prob=prob)
        self.prob, self.released = prob, released

    def __call__(self, image: Image.Image) -> Image.Image:
        if not _chance(self.prob):
            return image
        sides = (image.width, image.height) if self.released else (image.height, image.width)
        box = random_box(*sides)
        if box is None:
            return image
        top, left, height, width = box
        if self.released:
            top, left = left, top
        corners = (left, top, min(left + width, image.width), min(top + height, image.height))
        image = image.copy()
        image.paste(image.crop(corners).convert("L"), corners)
        return image


@TRANSFORMS.register_module()
class ToTensor:
    """PIL RGB image to a float tensor (3, H, W) in 0..1."""

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.divide(np.asarray(image).transpose(2, 0, 1), np.float32(255), order="C"))


@TRANSFORMS.register_module()
class Normalize:
    """Subtract ImageNet's mean and divide by its deviation per channel, in place on a float tensor (3, H, W)."""

    def __init__(self) -> None:
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def __call__(self, image: Tensor) -> Tensor:
        return image.sub_(self.mean).div_(self.std)


@TRANSFORMS.register_module()
class RandomErasing:
    """Paint a random rectangle of a float tensor (3, H, W), in place, after normalisation.

    As CORE-ReID does it: the ImageNet mean painted on normalised values.
    """

    def __init__(self, prob: float = 0.5) -> None:
        check_numbers("RandomErasing", 0, 1, prob=prob)
        self.prob = prob
        self.fill = torch.tensor(IMAGENET_MEAN).view(-1, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        box = random_box(*image.shape[1:]) if _chance(self.prob) else None
        if box is not None:
            top, left, height, width = box
            image[:, top : top + height, left : left + width] = self.fill
        return image


def random_box(height: int, width: int) -> tuple[int, int, int, int] | None:
    """Draw a rectangle inside (height, width): its area share and aspect (height / width) uniform, then its place.

    Returns:
        (top, left, height, width) in pixels, or None when 100 draws did not fit.
    """
    for _ in range(100):
        share, ratio = torch.rand(2).tolist()
        pixels = (AREA[0] + share * (AREA[1] - AREA[0])) * height * width
        ratio = ASPECT[0] + ratio * (ASPECT[1] - ASPECT[0])
        box_height, box_width = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < box_height < height and 0 < box_width < width:
            return _place(height - box_height), _place(width - box_width), box_height, box_width
    return None


def _stretch(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.NEAREST)


def _place(spare: int) -> int:
    return int(torch.randint(spare + 1, ()).item())
