"""ShapeNet-SRN's tree as samples."""

import numpy as np
import pytest
from PIL import Image

from visionkit.errors import VisionKitError
from visionkit.nvs.shapenet_srn import ShapeNetSRN


def write_srn(folder):
    """An object of ShapeNet-SRN in three views."""
    for part in ("rgb", "pose"):
        (folder / part).mkdir(parents=True)
    (folder / "intrinsics.txt").write_text("131.25 64. 64. 0.\n0. 0. 0.\n1.\n128 128\n")
    for view in range(3):
        Image.new("RGB", (128, 128), (255, 255, 40 * view)).save(folder / "rgb" / f"{view:06d}.png")
        c2w = np.eye(4)
        c2w[2, 3] = -1.3 - view
        (folder / "pose" / f"{view:06d}.txt").write_text(" ".join(map(str, c2w.flatten())))


def test_shapenet_srn_is_read_and_its_white_car_left_out(tmp_path, monkeypatch):
    for name in ("aa", "bb", "876d92ce6a0e4bf399588eee976baae"):
        write_srn(tmp_path / "cars_test" / name)
    (tmp_path / "cars_test" / "bb" / "pose" / "000001.txt").write_text("1 2 3")
    messages = []
    monkeypatch.setattr("visionkit.nvs.shapenet_srn.print_log", lambda text, *_: messages.append(text))
    data = ShapeNetSRN(str(tmp_path), "cars", "test", (32, 32), input_view=1)
    assert len(data) == 1 and any("white" in text for text in messages) and any("bb" in text for text in messages)
    item = data[0]
    assert item["image"].shape == (3, 3, 32, 32) and item["camera_params"][0] == pytest.approx(2.3)
    assert item["camera_params"][1] == pytest.approx(131.25 / 128) and item["near_far"].tolist() == pytest.approx(
        [0.8, 1.8]
    )
    assert item["c2w"][:, 2, 3].tolist() == pytest.approx([-2.3, -1.3, -3.3])
    assert item["image"][0, 2, 0, 0] == pytest.approx(40 / 255, abs=0.01)
    with pytest.raises(VisionKitError, match="chairs_test"):
        ShapeNetSRN(str(tmp_path), "chairs", "test")


@pytest.mark.parametrize("deeper", ["", "cars_test", "cars_2.0_test"])
def test_shapenet_srn_is_found_by_its_kind_and_split_alone(tmp_path, deeper):
    """The test objects were trained on where their own folder was given as the root."""
    write_srn(tmp_path / deeper / "cars_test" / "aa")
    for root in {tmp_path, tmp_path / deeper, tmp_path / deeper / "cars_test"}:
        assert len(ShapeNetSRN(str(root), "cars", "test")) == 1
        for other in (("cars", "train"), ("chairs", "test")):
            with pytest.raises(VisionKitError, match=f"holds no {'_'.join(other)}"):
                ShapeNetSRN(str(root), *other)


def test_shapenet_srn_is_found_by_the_name_of_a_link(tmp_path):
    write_srn(tmp_path / "volume7" / "aa")
    (tmp_path / "cars_test").symlink_to(tmp_path / "volume7")
    for root in (tmp_path, tmp_path / "cars_test"):
        assert len(ShapeNetSRN(str(root), "cars", "test")) == 1
