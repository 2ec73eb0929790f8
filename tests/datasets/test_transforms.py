import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from visionkit.datasets import build_transforms, test_transforms, train_transforms
from visionkit.datasets import transforms as T
from visionkit.errors import VisionKitError


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 16, 3), dtype=np.uint8))


def test_resize_flip_pad_agree_with_torchvision(image):
    assert np.array_equal(T.Resize((64, 30))(image), F.resize(image, [64, 30], F.InterpolationMode.BICUBIC))
    assert T.Resize((32, 16))(image) is image
    assert np.array_equal(T.RandomHorizontalFlip(1.0)(image), F.horizontal_flip(image))
    assert T.RandomHorizontalFlip(0.0)(image) is image
    assert np.array_equal(T.Pad(5)(image), F.pad(image, [5], padding_mode="edge"))
    assert T.Pad(0)(image) is image
    for wrong in (-1, 2.5, "x"):
        with pytest.raises(VisionKitError, match=f"padding={wrong!r}; expected a whole number"):
            T.Pad(wrong)


def test_to_tensor_and_normalize_agree_with_torchvision(image):
    expected = F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)
    tensor = T.ToTensor()(image)
    torch.testing.assert_close(tensor, expected)
    assert tensor.is_contiguous()
    expected = F.normalize(expected, list(T.IMAGENET_MEAN), list(T.IMAGENET_STD))
    torch.testing.assert_close(T.Normalize()(tensor), expected)


def test_crop_reaches_every_place(image):
    padded = T.Pad(1)(image)
    crops = {np.asarray(T.RandomCrop((32, 16))(padded)).tobytes() for _ in range(200)}
    assert len(crops) == 9 and np.asarray(image).tobytes() in crops
    with pytest.raises(VisionKitError, match="put Resize and Pad before"):
        T.RandomCrop((33, 16))(image)


def test_grayscale(image):
    pixels = np.asarray(T.RandomGrayscale(1.0)(image))
    assert (pixels == pixels[..., :1]).all()
    assert T.RandomGrayscale(0.0)(image) is image


@pytest.mark.parametrize("released, mean", [(False, 0.20), (True, 0.15)])
def test_local_grayscale_area(released, mean):
    """The rectangle is grey, the rest untouched; its mean share is that of the paper, or of the released code."""
    image = Image.new("RGB", (32, 64), (200, 30, 90))
    transform = T.RandomLocalGrayscale(1.0, released=released)
    shares = []
    for _ in range(600):
        pixels = np.asarray(transform(image))
        grey = (pixels == pixels[..., :1]).all(-1)
        assert (pixels[~grey] == (200, 30, 90)).all()
        shares.append(grey.mean())
    assert abs(np.mean(shares) - mean) < 0.02
    assert np.asarray(image)[0, 0].tolist() == [200, 30, 90] and (np.asarray(image) == np.asarray(image)[0, 0]).all()


def test_local_grayscale_inside_when_correct():
    boxes = [T.random_box(64, 32) for _ in range(500)]
    assert all(top >= 0 and left >= 0 and top + h <= 64 and left + w <= 32 for top, left, h, w in boxes)
    ratios = np.array([h / w for _, _, h, w in boxes])
    assert ratios.min() > 0.25 and ratios.max() < 4.0
    assert T.random_box(1, 1) is None


def test_probability_is_kept():
    image = Image.new("RGB", (16, 32), (200, 30, 90))
    changed = sum(T.RandomLocalGrayscale(0.4)(image) is not image for _ in range(1000))
    assert 350 < changed < 450
    with pytest.raises(VisionKitError, match="prob=1.5"):
        T.RandomLocalGrayscale(1.5)


def test_erasing_paints_the_mean_after_normalisation():
    image = torch.full((3, 64, 32), 9.0)
    erased = T.RandomErasing(1.0)(image.clone())
    hole = (erased != 9).all(0)
    assert 0.015 < hole.float().mean() < 0.45
    torch.testing.assert_close(erased[:, hole], torch.tensor(T.IMAGENET_MEAN)[:, None].expand(3, int(hole.sum())))
    assert torch.equal(T.RandomErasing(0.0)(image.clone()), image)


def test_lists(image):
    names = [step["type"].split(".")[1] for step in train_transforms((64, 32), erasing=0.5)]
    assert names == [
        "Resize", "RandomHorizontalFlip", "Pad", "RandomCrop", "RandomLocalGrayscale", "ToTensor", "Normalize",
        "RandomErasing",
    ]  # fmt: skip
    assert "RandomErasing" not in str(train_transforms((64, 32))) and "RandomGrayscale" in str(
        train_transforms((64, 32), grayscale=0.05)
    )
    for steps in (train_transforms((64, 32), erasing=0.5, grayscale=0.05, released=True), test_transforms((64, 32))):
        out = image
        for transform in build_transforms(steps):
            out = transform(out)
        assert out.shape == (3, 64, 32) and out.dtype == torch.float32
    assert build_transforms(None) == []


def test_seed_repeats(image):
    transforms = build_transforms(train_transforms((32, 16), pad=4, erasing=0.5, grayscale=0.1))

    def run():
        torch.manual_seed(5)
        outs = []
        for _ in range(20):
            out = image
            for transform in transforms:
                out = transform(out)
            outs.append(out)
        return torch.stack(outs)

    assert torch.equal(run(), run())
