"""MVImgNet's tree as samples, on a few tiny scenes."""

import json
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from visionkit.errors import VisionKitError
from visionkit.nvs.cameras import pixel_rays
from visionkit.nvs.captures.colmap import read_colmap
from visionkit.nvs.captures.scene import Scene
from visionkit.nvs.data import fitted_view
from visionkit.nvs.mvimgnet import MVImgNet

pytest.importorskip("pycolmap")
SIZE = (40, 20)  # as conftest.py's


@pytest.fixture
def messages(monkeypatch):
    found = []
    for module in ("data", "scene_cache"):
        monkeypatch.setattr(f"visionkit.nvs.{module}.print_log", lambda text, *_: found.append(text))
    return found


def test_a_sample_is_in_the_input_views_frame(tree):
    data = MVImgNet(str(tree), img_size=SIZE, views=4)
    item = data[1]
    assert item["image"].shape == (4, 3, *SIZE) and 0 <= item["image"].min() and item["image"].max() <= 1
    expected = torch.eye(3, 4)
    expected[2, 3] = -item["camera_params"][0]
    assert torch.allclose(item["c2w"][0], expected, atol=1e-5)
    assert item["camera_params"][1] == pytest.approx(float(item["focal"][0, 1]) / SIZE[0])
    assert 0 < item["near_far"][0] < item["camera_params"][0] < item["near_far"][1] < 2


def test_the_distance_is_from_where_the_cameras_look_or_as_released_from_the_cubes_centre(tree):
    away = {}
    for centre in ("viewed", "cube"):
        data = MVImgNet(str(tree), split="test", img_size=SIZE, centre=centre)
        scene, item = data.scenes[0], data[0]
        away[centre] = float(item["camera_params"][0])
        assert away[centre] == pytest.approx(scene.distances(centre)[6])
        assert float(item["c2w"][0, 2, 3]) == pytest.approx(-away[centre])
    assert away["cube"] == pytest.approx(np.linalg.norm(scene.centres[6])) and away["cube"] != away["viewed"]
    with pytest.raises(VisionKitError, match="centre='middle': expected one of viewed, cube"):
        MVImgNet(str(tree), img_size=SIZE, centre="middle")


def test_a_point_seen_twice_has_one_place(tree):
    """Depth of two views, in the sample's frame: rays of both end on the same surface."""
    data = MVImgNet(str(tree), split="test", img_size=SIZE)
    item, scene = data[0], data.scenes[0]
    depth = np.load(tree / scene.name / "depth.npy")
    raw = np.load(tree / "visionkit_test.npz")
    # The scale of the unit cube, from two cameras.
    poses = _colmap_poses(tree / scene.name)
    scale = np.linalg.norm(raw["c2w"][0, :, 3] - raw["c2w"][5, :, 3]) / np.linalg.norm(poses[0] - poses[5])
    origins, directions = pixel_rays(item["c2w"][None], item["focal"][None], SIZE)
    order = [6, *(row for row in range(12) if row != 6)]
    forward = item["c2w"][:, :, 2]
    cosine = torch.einsum("vhwc,vc->vhw", directions[0], forward)
    points = origins[0] + directions[0] * (torch.from_numpy(depth[order]) * scale / cosine)[..., None]
    first, second = points[0].reshape(-1, 3), points[6].reshape(-1, 3)  # views 7 and 6, neighbours
    nearest = torch.cdist(first, second).min(dim=1).values
    assert nearest.quantile(0.6) < 0.02


def _colmap_poses(folder):
    import pycolmap

    model = pycolmap.Reconstruction(folder / "sparse" / "0")
    return [image.projection_center() for image in sorted(model.images.values(), key=lambda image: image.name)]


def test_evaluation_starts_from_the_middle_view_and_leaves_it_out(tree):
    data = MVImgNet(str(tree), split="test", img_size=SIZE)
    assert data._choose(12) == [6, 0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert MVImgNet(str(tree), split="test", img_size=SIZE, include_input=True)._choose(3) == [1, 0, 1, 2]


def test_near_and_far_never_come_from_the_test_split(copy):
    before = MVImgNet(str(copy), split="test", img_size=SIZE).near_far
    for name in json.loads((copy / "test_classes.json").read_text()):
        shutil.rmtree(copy / name, ignore_errors=True)
    assert MVImgNet(str(copy), img_size=SIZE).near_far == before
    with pytest.raises(VisionKitError, match="no scene of the test split"):
        MVImgNet(str(copy), split="test", img_size=SIZE)


def test_scenes_are_read_once_and_bad_ones_are_named(copy, messages, monkeypatch):
    bad = sorted(path.parent for path in copy.glob("*/*/images") if not path.parts[-3].startswith(("arch", "spiral")))
    (bad[0] / "sparse" / "0" / "images.bin").unlink()
    (bad[0] / "sparse" / "0" / "cameras.bin").unlink()
    assert len(MVImgNet(str(copy), img_size=SIZE)) == 2
    name = bad[0].relative_to(copy).as_posix()
    assert any(name in text and "left out" in text for text in messages)
    table = json.loads(np.load(copy / "visionkit_train.npz")["table"].tobytes())
    assert table["skipped"][0][0] == name and table["skipped"][0][1]

    monkeypatch.setattr("visionkit.nvs.scene_cache.read_colmap", lambda *_: pytest.fail("read twice"))
    first = MVImgNet(str(copy), img_size=SIZE)
    monkeypatch.undo()
    (copy / "visionkit_train.npz").write_bytes(b"damaged")
    second = MVImgNet(str(copy), img_size=SIZE)
    assert first.near_far == second.near_far
    for a, b in zip(first.scenes, second.scenes):
        assert np.array_equal(a.c2w, b.c2w) and a.paths == b.paths


def test_without_a_list_every_hundredth_scene_of_a_class_is_a_test_scene(copy):
    (copy / "test_classes.json").unlink()
    for i, folder in enumerate(sorted(path.parent for path in copy.glob("*/*/images"))):
        shutil.move(folder, copy / "one" / f"{i:02d}")
    test = MVImgNet(str(copy), split="test", img_size=SIZE)
    assert [each.name for each in test.scenes] == ["one/00"]
    train = MVImgNet(str(copy), img_size=SIZE)
    assert [each.name for each in train.scenes] == ["one/01", "one/02", "one/03"]
    assert len(MVImgNet(str(copy), split="test", img_size=SIZE, test_every=2)) == 2
    with pytest.raises(VisionKitError, match="no such folder"):
        MVImgNet(str(copy / "nowhere"))


def bare_tree(root, classes=("a", "b"), scenes=2):
    """MVImgNet's tree, the same capture in each scene."""
    from nvs.captures import trees

    folder = trees.write_colmap(root / "tree" / classes[0] / "0")
    for name in (f"{kind}/{i}" for kind in classes for i in range(scenes)):
        if name != f"{classes[0]}/0":
            shutil.copytree(folder, root / "tree" / name)
    return root / "tree"


def test_other_cameras_or_photos_are_noticed_and_reasons_told_again(tmp_path, messages):
    root = bare_tree(tmp_path)
    (root / "a" / "1" / "sparse" / "0" / "images.bin").unlink()
    assert len(MVImgNet(str(root), img_size=SIZE)) == 1
    told, messages[:] = messages[:], []
    assert any("a/1 is left out" in text for text in told)
    MVImgNet(str(root), img_size=SIZE)
    assert messages == told  # from the file, too

    shutil.copy(root / "a" / "0" / "sparse" / "0" / "images.bin", root / "a" / "1" / "sparse" / "0")
    assert len(MVImgNet(str(root), img_size=SIZE)) == 2
    (root / "b" / "1" / "images" / "002.png").unlink()
    scene = MVImgNet(str(root), img_size=SIZE).scenes[1]
    assert scene.name == "b/1" and len(scene) == 5 and "002.png" not in scene.names


def test_photos_that_are_cut_off_are_left_out_and_told_once(tmp_path, messages):
    root = bare_tree(tmp_path)
    for name in ("001.png", "003.png"):  # the third is an evaluation's input
        path = root / "a" / "1" / "images" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    train = MVImgNet(str(root), img_size=SIZE, views=6)
    for _ in range(8):
        assert train[0]["image"].shape == (6, 3, *SIZE)
    assert len(messages) == 2 and all("its view is left out" in text for text in messages)
    train.views = None
    assert train[0]["image"].shape == (4, 3, *SIZE)
    for path in (root / "a" / "1" / "images").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(VisionKitError, match="a/1: 0 of its photos can be read"):
        train[0]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:200], lambda data: b"", lambda data: data.replace(b"{", b"[", 1)]
)
def test_a_damaged_file_of_scenes_is_made_anew(tmp_path, damage):
    root = bare_tree(tmp_path)
    MVImgNet(str(root), img_size=SIZE)
    file = root / "visionkit_train.npz"
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert len(MVImgNet(str(root), img_size=SIZE)) == 2 and len(file.read_bytes()) == len(whole)


@pytest.mark.parametrize("text", ["[", '{"a": 1}', '["a", 1]', '"a"', "\xff"])
def test_a_damaged_list_of_test_classes_is_named(tmp_path, text):
    (tmp_path / "a" / "0").mkdir(parents=True)
    (tmp_path / "test_classes.json").write_bytes(text.encode("latin1"))
    with pytest.raises(VisionKitError, match="test_classes.json: (is not valid JSON|expected a list of class names)"):
        MVImgNet(str(tmp_path))


@pytest.mark.parametrize("value", [0, -1, 0.5])
def test_a_count_of_scenes_below_one_is_named(tmp_path, value):
    with pytest.raises(VisionKitError, match=f"MVImgNet: test_every={value}; expected a whole number of at least 1"):
        MVImgNet(str(tmp_path), test_every=value)


def test_a_split_without_scenes_says_why(tmp_path):
    with pytest.raises(VisionKitError, match="holds no scene; expected MVImgNet's tree"):
        MVImgNet(str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / name / "0").mkdir(parents=True)
    with pytest.raises(VisionKitError, match="no scene of the train split.*list the test classes in"):
        MVImgNet(str(tmp_path))
    for listed, split in ((["a", "b"], "train"), ([], "test")):
        (tmp_path / "test_classes.json").write_text(json.dumps(listed))
        with pytest.raises(VisionKitError, match=f"test_classes.json: there is no scene of the {split} split"):
            MVImgNet(str(tmp_path), split=split)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (50, 50)])
def test_turned_and_cropped_views_keep_their_rays(tmp_path, shape):
    """Each pixel's colour codes its place in the file; the same ray must be found behind it afterwards."""
    height, width = shape
    rows, columns = np.mgrid[:height, :width]
    code = np.stack([rows * 4, columns * 4, 0 * rows], axis=-1).astype(np.uint8)
    Image.fromarray(code).save(tmp_path / "a.png")
    K = np.array([[33.0, 0, width / 2], [0, 33.0, height / 2], [0, 0, 1]])
    pose = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    pose *= np.sign(np.linalg.det(pose))
    empty = np.zeros((0, 3))
    one = (np.zeros(0, int),)
    c2w = np.concatenate([pose, np.ones((3, 1))], axis=1)[None]
    scene = Scene("a", ("a.png",), (tmp_path / "a.png",), K[None], np.array([shape]), c2w, np.zeros((1, 8)), empty, one)
    image, camera = fitted_view(scene, 0, (40, 20))
    assert image.shape == (40, 20, 3) and camera.size == (40, 20)
    _, fitted = camera.rays()
    _, original = scene.camera(0).rays()
    for row, column in ((20, 10), (8, 5), (31, 14)):
        i, j = image[row, column, :2] / 4
        direction = fitted.view(40, 20, 3)[row, column]
        nearest = (original @ direction).argmax()
        assert abs(int(nearest) // width - i) <= 1.2 and abs(int(nearest) % width - j) <= 1.2


def test_a_scene_with_a_pose_that_is_not_finite_does_without_it(copy):
    folder = next(copy.glob("arch*/*/sparse/0"), None) or next(copy.glob("*/*/sparse/0"))
    before = MVImgNet(str(copy), img_size=SIZE).near_far
    data = bytearray((folder / "images.bin").read_bytes())
    struct.pack_into("<d", data, 44, float("nan"))  # the first image's translation
    (folder / "images.bin").write_bytes(bytes(data))
    scene = read_colmap(folder.parents[1])
    assert len(scene) == 11 and [reason for _, reason in scene.skipped] == [
        "has a pose with numbers that are not finite"
    ]
    assert np.allclose(MVImgNet(str(copy), img_size=SIZE).near_far, before, rtol=0.2)


def test_a_portrait_photo_is_turned_for_a_landscape_model(tree):
    scene = MVImgNet(str(tree), img_size=SIZE).scenes[0]
    image, camera = fitted_view(scene, 0, (SIZE[1], SIZE[0]))
    assert image.shape[:2] == camera.size == (20, 40)
    assert np.abs(image.astype(int) - np.rot90(scene.image(0, SIZE))).max() <= 2
    assert np.allclose(camera.c2w[:, 0], scene.c2w[0, :, 1]) and np.allclose(camera.c2w[:, 1], -scene.c2w[0, :, 0])
