import numpy as np
import pytest
from PIL import Image

from visionkit.errors import VisionKitError
from visionkit.reid import pictures
from visionkit.reid.pictures import MISSING, RIGHT, WRONG, draw_projection, draw_ranked_lists, ranked_lists


@pytest.fixture
def rows(tmp_path):
    def row(name, pid, camid):
        Image.new("RGB", (32, 64), (90, 90, 200)).save(tmp_path / f"{name}.png")
        return str(tmp_path / f"{name}.png"), pid, camid

    query = [row("q", 1, 0)]
    gallery = [row("junk", 1, 0), row("right", 1, 1), row("wrong", 2, 1), row("none", -1, 1)]
    features = np.array([[0.0], [1.0], [2.0], [0.5]], np.float32)
    return np.zeros((1, 1), np.float32), features, query, gallery


def test_junk_is_left_out_and_frames_tell_right_from_wrong(rows, tmp_path):
    (ranked,) = ranked_lists(*rows, num_queries=5, topk=10)
    assert [(each.distance, each.right) for each in ranked.gallery] == [(1.0, True), (2.0, False)]
    sheet = Image.open(draw_ranked_lists([ranked], tmp_path / "out" / "sheet.png", "Title"))
    colours = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert {RIGHT, WRONG, (90, 90, 200)} <= colours
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["sheet.png"]


def test_without_cameras_an_image_of_the_identity_is_no_junk(rows):
    (ranked,) = ranked_lists(*rows, use_cameras=False)
    assert [(each.distance, each.right) for each in ranked.gallery] == [(0.0, True), (1.0, True), (2.0, False)]


def test_projection(tmp_path):
    r = np.random.RandomState(0)
    pids = np.repeat([-1, 3, 5, 8], 6)
    path = draw_projection(r.standard_normal((24, 5)), pids, r.randint(0, 3, 24), tmp_path / "map.png")
    assert Image.open(path).width > 900
    numbers = np.array([-1, -3, -5, -8])[np.searchsorted([-1, 3, 5, 8], pids)]  # -1 alone is noise
    draw_projection(r.standard_normal((24, 5)), numbers, r.randint(0, 3, 24), tmp_path / "negative.png")


def test_cameras_count_from_one_as_in_file_names(rows, tmp_path, monkeypatch):
    assert ranked_lists(*rows)[0].caption == "id 1, cam 1"
    shown = {}
    monkeypatch.setattr(pictures, "_scatter", lambda axes, points, labels, name: shown.update({name: set(labels)}))
    draw_projection(np.random.RandomState(0).standard_normal((6, 5)), [7] * 6, [0, 1, 2] * 2, tmp_path / "map.png")
    assert shown == dict(identity={7}, camera={1, 2, 3})


def test_one_and_the_same_feature_is_one_point(tmp_path):
    path = draw_projection(np.ones((8, 5), np.float32), [1, 2] * 4, [0, 1] * 4, tmp_path / "map.png")
    assert Image.open(path).width > 200


def test_wrong_input(rows, tmp_path):
    with pytest.raises(VisionKitError, match="no ranked list"):
        draw_ranked_lists([], tmp_path / "sheet.png")
    with pytest.raises(VisionKitError, match="name a picture"):
        draw_ranked_lists(ranked_lists(*rows), tmp_path / "sheet.doc")
    with pytest.raises(VisionKitError, match="too few"):
        draw_projection(np.zeros((5, 2)), [-1, -1, 3, 3, 3], [0] * 5, tmp_path / "map.png")
    assert not list(tmp_path.glob("*map*")) and not list(tmp_path.glob("*.doc"))


def test_a_gallery_file_that_is_gone_is_a_grey_cell(rows, tmp_path):
    lists = ranked_lists(*rows)
    (tmp_path / "right.png").unlink()
    sheet = Image.open(draw_ranked_lists(lists, tmp_path / "sheet.png"))
    grey = dict((colour, number) for number, colour in sheet.getcolors(1 << 20))[MISSING]
    assert 0.8 * 64 * 128 < grey < 64 * 128  # the rest is the word


def test_captions_in_other_alphabets_can_be_read(rows, tmp_path):
    (ranked,) = ranked_lists(*rows)
    drawn = [
        draw_ranked_lists([ranked._replace(caption=letter)], tmp_path / f"{number}.png").read_bytes()
        for number, letter in enumerate("üéжλ")
    ]
    assert len(set(drawn)) == len(drawn)  # a letter that the font lacks is a box, the same for all
