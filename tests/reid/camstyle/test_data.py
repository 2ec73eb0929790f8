"""Images by camera and unaligned pairs."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from reid_trees import write_image, write_market

from visionkit.errors import VisionKitError
from visionkit.reid.camstyle.data import UnalignedPairs, camera_images, image_to_tensor, tensor_to_image

pytestmark = pytest.mark.filterwarnings("ignore:.*published with")


@pytest.fixture
def market(tmp_path):
    return dict(type="visionkit.Market1501", root=str(write_market(tmp_path)))


def test_images_of_a_camera(market):
    everything = camera_images(market)
    assert list(everything) == [0, 1, 2] and sum(map(len, everything.values())) == 12
    assert all("_c2s1_" in path for path in everything[1])
    with_test = sum(camera_images(market, include_test=True).values(), [])
    assert len(with_test) == 12 + 8 + 2
    assert not any(Path(path).name.startswith(("0000", "-1")) for path in with_test)


def test_pairs_take_each_image_of_the_larger_side_once(tmp_path):
    a = [str(write_image(tmp_path / f"a{i}.png", i)) for i in range(2)]
    b = [str(write_image(tmp_path / f"b{i}.png", 10 + i)) for i in range(5)]
    pairs = UnalignedPairs(a, b, load_size=(18, 9), image_size=(16, 8))
    torch.manual_seed(0)
    items = [pairs[i] for i in range(len(pairs))]
    assert [item["path_b"] for item in items] == b and {item["path"] for item in items} == set(a)
    swapped = UnalignedPairs(b, a, load_size=(18, 9), image_size=(16, 8))
    assert [swapped[i]["path"] for i in range(len(swapped))] == b
    assert items[0]["a"].shape == items[0]["b"].shape == (3, 16, 8)
    assert min(item["a"].min() for item in items) >= -1 and max(item["b"].max() for item in items) <= 1
    torch.manual_seed(0)
    assert all(torch.equal(pairs[i]["a"], item["a"]) for i, item in enumerate(items))


def test_the_augmentation_crops_and_flips(tmp_path):
    path = str(write_image(tmp_path / "a.png", 0, size=(18, 9)))
    pairs = UnalignedPairs([path], [path], load_size=(18, 9), image_size=(16, 8))
    whole = image_to_tensor(Image.open(path))
    windows = [whole[:, y : y + 16, x : x + 8] for y in range(3) for x in range(2)]
    windows += [window.flip(-1) for window in windows]
    torch.manual_seed(0)
    drawn = [pairs[0]["a"] for _ in range(100)]
    seen = {next(i for i, window in enumerate(windows) if torch.equal(window, each)) for each in drawn}
    assert len(seen) == len(windows)


def test_values_go_to_tensors_and_back():
    image = Image.frombytes("RGB", (16, 16), bytes(range(256)) * 3)
    tensor = image_to_tensor(image)
    assert tensor.min() == -1 and tensor.max() == 1
    assert tensor_to_image(tensor).tobytes() == image.tobytes()


def test_a_damaged_image_is_replaced(tmp_path):
    good, bad = str(write_image(tmp_path / "good.png", 0)), tmp_path / "bad.png"
    bad.write_bytes(b"")
    pairs = UnalignedPairs([str(bad), good], [good, good], load_size=(16, 8), image_size=(16, 8))
    assert pairs[0]["path"] == good
    with pytest.raises(VisionKitError, match="ten images in a row"):
        UnalignedPairs([str(bad)], [str(bad)])[0]
