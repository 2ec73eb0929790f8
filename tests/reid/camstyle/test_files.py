"""What is wrong with a folder of styled images."""

import pytest
from PIL import Image

from visionkit.errors import VisionKitError
from visionkit.reid.camstyle.files import check_styled_folder, origins_by_name

ORIGINS = {"0002_c1s1_000001_01": ("a.jpg", "1"), "0002_c2s1_000002_01": ("b.jpg", "2")}


def folder_of(tmp_path, *names):
    for name in names:
        Image.new("RGB", (8, 16)).save(tmp_path / name)
    return tmp_path


def test_a_good_folder_is_counted(tmp_path):
    folder = folder_of(
        tmp_path, "0002_c1s1_000001_01_fake_1to2.jpg", "0002_c2s1_000002_01_fake_02to01.png", "0002_c1s1_000001_01.jpg"
    )
    assert check_styled_folder(folder, ORIGINS, "12") == {("1", "2"): 1, ("2", "1"): 1}


def test_real_images_and_styled_distractors_are_passed_over(tmp_path):
    """The authors' merged folder, `bounding_box_train_all`."""
    real = ("0002_c1s1_000001_01.jpg", "0000_c1s1_000009_01.jpg", "0005_c3s1_000008_01.jpg")
    folder = folder_of(tmp_path, *real, "0000_c1s1_000009_01_fake_1to2.jpg")
    with pytest.raises(VisionKitError, match="holds no styled image of the data set"):
        check_styled_folder(folder, ORIGINS, "12")
    folder_of(tmp_path, "0002_c1s1_000001_01_fake_1to2.jpg")
    with pytest.warns(UserWarning, match="1 styled images are of no image of the data set and are passed over"):
        assert check_styled_folder(folder, ORIGINS, "12") == {("1", "2"): 1}


@pytest.mark.parametrize(
    "name, message",
    [
        ("0002_c1s1_000001_01_fake_2to1.jpg", "says camera 2, its origin's is 1"),
        ("0002_c1s1_000001_01_fake_1to7.jpg", "no style of camera '7'; expected one of 2"),
        ("0002_c1s1_000001_01_fake_1to1.jpg", "no style of camera '1'"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, name, message):
    with pytest.raises(VisionKitError, match=message) as caught:
        check_styled_folder(folder_of(tmp_path, name), ORIGINS, "12")
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(VisionKitError, match="holds no styled image"):
        check_styled_folder(tmp_path, ORIGINS, "12")


def test_two_originals_of_one_name_are_refused():
    with pytest.raises(VisionKitError, match="b/x/1.jpg: has the same name as a/x/1.jpg"):
        origins_by_name({"a/x/1.jpg": "1", "b/x/1.jpg": "1"})


def test_originals_of_one_stem_are_told_apart_by_their_folders():
    labels = {"x/1.jpg": "1", "y/1.jpg": "2", "y/2.jpg": "1"}
    expected = {"x__1": ("x/1.jpg", "1"), "y__1": ("y/1.jpg", "2"), "2": ("y/2.jpg", "1")}
    assert origins_by_name(labels) == expected


def test_an_image_of_another_camera_takes_no_name_away():
    """With ``pairs`` it gets no style, but the source stage asks for the origin among all images."""
    assert origins_by_name({"data/ann/1.jpg": "1"}) == {"1": ("data/ann/1.jpg", "1")}
    others = ["data/ann/1.jpg", "data/bob/1.jpg"]
    assert origins_by_name({"data/ann/1.jpg": "1"}, others) == {"ann__1": ("data/ann/1.jpg", "1")}
