import pytest
import reid_trees

from visionkit.datasets import Market1501
from visionkit.datasets.styled import parse_styled_name, styled_name
from visionkit.errors import VisionKitError


@pytest.fixture
def styled(market, tmp_path):
    """Every real image in the style of every other camera, as a train+test run makes them."""
    for folder in ("bounding_box_train", "bounding_box_test", "query"):
        for path in (market / folder).iterdir():
            cam = int(path.stem.split("_c")[1][0])
            for other in {1, 2, 3} - {cam}:
                reid_trees.write_image(tmp_path / "styled" / f"{path.stem}_fake_{cam}to{other}.jpg", cam)
    reid_trees.write_image(tmp_path / "styled" / "0002_c1s1_000001_01.jpg", 0)  # a real one beside them
    return tmp_path / "styled"


def test_names_there_and_back():
    name = styled_name("0002_c1s1_000451_03", "1", "4")
    assert name == "0002_c1s1_000451_03_fake_1to4.jpg"
    styled = parse_styled_name(name)
    assert (styled.origin, styled.from_camera, styled.to_camera) == ("0002_c1s1_000451_03", "1", "4")
    assert parse_styled_name("x_fake_01to12.png").to_camera == "12"
    assert parse_styled_name("x_fake_AtoB.png").from_camera == "A"
    assert parse_styled_name("0002_c1s1_000451_03.jpg") is None


def test_identity_and_camera_of_the_origin(market, styled):
    dataset = Market1501(market, "train", styled=dict(root=styled))
    assert len(dataset) == 12 * 3 and dataset.num_pids == 3
    real = {sample.path.split("/")[-1][:-4]: sample for sample in dataset.samples[:12]}
    for sample in dataset.samples[12:]:
        origin = real[sample.path.split("/")[-1].split("_fake_")[0]]
        assert (sample.pid, sample.camid) == (origin.pid, origin.camid)


def test_camera_of_the_style(market, styled):
    dataset = Market1501(market, "train", styled=dict(root=str(styled), camera="style"))
    for sample in dataset.samples[12:]:
        assert sample.camid == int(sample.path[-5]) - 1


def test_styled_images_of_test_images_are_left_out_with_a_warning(market, styled):
    with pytest.warns(UserWarning, match=r"Market1501: 24 of the styled images in .* by include_test=True"):
        dataset = Market1501(market, "train", styled=dict(root=styled))
    assert len(dataset) == 12 * 3


def test_train_and_test(market, styled):
    dataset = Market1501(market, "train", styled=dict(root=styled), include_test=True)
    assert len(dataset) == (12 + 8 + 2) * 3 and dataset.num_pids == 5


def test_errors(market, styled, tmp_path):
    with pytest.raises(VisionKitError, match="styled root .* is no folder"):
        Market1501(market, "train", styled=dict(root=tmp_path / "none"))
    with pytest.raises(VisionKitError, match='expected "origin" or "style"'):
        Market1501(market, "train", styled=dict(root=styled, camera="target"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(VisionKitError, match="holds no <stem>_fake_"):
        Market1501(market, "train", styled=dict(root=tmp_path / "empty"))
    reid_trees.write_image(tmp_path / "words" / "0002_c1s1_000001_01_fake_realtoveri.jpg", 0)
    assert len(Market1501(market, "train", styled=dict(root=tmp_path / "words"))) == 13
    with pytest.raises(VisionKitError, match="needs a camera number"):
        Market1501(market, "train", styled=dict(root=tmp_path / "words", camera="style"))
