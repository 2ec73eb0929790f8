"""Scenes: sizes, undistortion, normalisation."""

import dataclasses

import numpy as np
import pytest
from nvs.captures.trees import arc, draw_axes, write_colmap
from PIL import Image

from visionkit.errors import VisionKitError
from visionkit.nvs.captures import read_capture
from visionkit.nvs.captures.scene import CENTRES, viewed_centre
from visionkit.nvs.fit import split


def test_unit_cube_holds_points_and_cameras_and_keeps_pixels(tmp_path):
    scene = read_capture(write_colmap(tmp_path / "a"))
    normal = scene.normalised()
    everything = np.concatenate([normal.scene.centres, normal.scene.points[normal.scene.trusted_points()]])
    assert np.ptp(everything, axis=0).max() == pytest.approx(1)
    assert np.abs(everything.max(axis=0) + everything.min(axis=0)).max() < 1e-9
    for row in range(len(scene)):
        both = (scene, normal.scene)
        pixels = [(one.points - one.centres[row]) @ one.c2w[row, :, :3] @ one.K[row].T for one in both]
        assert np.allclose(*(pixel[:, :2] / pixel[:, 2:] for pixel in pixels))
    depths = [(normal.scene.points - c[:, 3]) @ c[:, 2] for c in normal.scene.c2w]
    assert normal.near < np.min(depths) and np.quantile(depths, 0.99) < normal.far < 2


def test_points_of_few_photographs_or_far_away_do_not_stretch_the_cube(tmp_path):
    scene = read_capture(write_colmap(tmp_path / "a", arc(12), points=300))
    side = 1 / scene.normalised().scale
    points = np.concatenate([scene.points, [[0, 0, 90.0], [0, 0, 50.0]]])
    visible = [np.append(rows, 300) for rows in scene.visible]  # 300: an outlier that all see
    visible[0] = np.append(visible[0], 301)  # 301: seen once
    stretched = dataclasses.replace(scene, points=points, visible=tuple(visible))
    assert 1 / stretched.normalised().scale == pytest.approx(side, rel=0.1)


def test_without_points_the_cameras_give_the_bounds(tmp_path):
    scene = read_capture(write_colmap(tmp_path / "a", points=0))
    normal = scene.normalised()
    assert 0 < normal.near < 2 * normal.scale < normal.far


@pytest.mark.parametrize("points", [0, 60])
def test_cameras_in_one_place_are_refused(tmp_path, points):
    scene = read_capture(write_colmap(tmp_path / "a", points=points))
    still = dataclasses.replace(scene, c2w=np.repeat(scene.c2w[:1], len(scene), axis=0))
    for what in (still.normalised, lambda: split(still)):
        with pytest.raises(VisionKitError, match="all cameras stand in one place; walk"):
            what()


def test_one_camera_that_sees_points_is_no_camera_that_stands_still(tmp_path):
    scene = read_capture(write_colmap(tmp_path / "a"))
    normal = scene.subset([2]).normalised()
    assert 0 < normal.near < normal.far and len(normal.scene) == 1


def test_axes_meet_at_the_viewed_centre():
    poses = np.stack([camera.c2w for camera in arc()])
    assert viewed_centre(poses) == pytest.approx([0, 0, 0], abs=0.01)
    parallel = np.repeat(np.eye(3, 4)[None], 3, axis=0)
    parallel[:, 0, 3] = [-1, 0, 1]
    assert viewed_centre(parallel) == pytest.approx([0, 0, 1], abs=1e-6)


def test_distances_from_where_the_cameras_look_do_not_hang_on_what_lies_behind(tmp_path):
    scene = read_capture(write_colmap(tmp_path / "a", points=200))
    further = dataclasses.replace(scene, points=scene.points + np.array([0, 3, 0]) * (scene.points[:, :1] > 0))
    ratios = {centre: [] for centre in CENTRES}
    for each in (scene, further):
        normal = each.normalised()
        for centre in CENTRES:
            ratios[centre].append(normal.scene.distances(centre) / normal.scale)
    eyes = np.linalg.norm(scene.centres, axis=1)  # they look at the origin
    assert np.allclose(ratios["viewed"], [eyes, eyes], rtol=0.02)
    assert not np.allclose(*ratios["cube"], rtol=0.1)


def test_radial_lens_and_off_centre_axis_are_undone(tmp_path):
    """A photograph warped by its lens shows, undistorted, what an ideal camera sees."""
    size, k = (120, 90), -0.15
    (ideal,) = arc(1, size, (108.0, 108.0))
    scene = read_capture(write_colmap(tmp_path / "a", [ideal], k=k))
    K = scene.K[0].copy()
    K[:2, 2] += [3.0, -2.0]
    scene = dataclasses.replace(scene, K=K[None])
    # The warped photograph: each of its pixels looks along the ray that its lens bends there.
    rows, columns = np.indices(size) + 0.5
    bent = np.stack([(columns - K[0, 2]) / K[0, 0], (rows - K[1, 2]) / K[1, 1]], axis=-1)
    straight = bent.copy()
    for _ in range(30):
        straight = bent / (1 + k * (straight**2).sum(-1, keepdims=True))
    wide = ideal.resized(size)
    wide = dataclasses.replace(wide, focal=(80.0, 80.0))
    picture = draw_axes(wide)[0]
    at = straight * 80.0 + [45, 60] - 0.5
    import cv2

    warped = cv2.remap(picture.astype(np.float32), *at.astype(np.float32).transpose(2, 0, 1), cv2.INTER_LINEAR)
    Image.fromarray((warped * 255).astype(np.uint8)).save(scene.paths[0])
    expected = draw_axes(scene.camera(0))[0] * 255
    plain = np.abs(np.asarray(Image.open(scene.paths[0])) - draw_axes(ideal)[0] * 255).mean()
    assert np.abs(scene.image(0) - expected).mean() < 0.25 * plain
    small = scene.image(0, (40, 30))
    assert np.abs(small - draw_axes(scene.camera(0, (40, 30)))[0] * 255).mean() < 4


def test_a_lens_that_leaves_the_focal_length_alone_is_undone_too(tmp_path):
    (camera,) = arc(1, (120, 90), (108.0, 108.0))
    k1, k2 = 0.1, -0.59  # which bend the corners inwards, but not the middles of the long sides
    scene = read_capture(write_colmap(tmp_path / "a", [camera]))
    scene = dataclasses.replace(scene, distortion=np.array([[k1, k2, *[0.0] * 6]]))
    assert scene.camera(0).focal == pytest.approx(camera.focal, abs=0.1)
    place = np.stack(np.indices((120, 90))[::-1], axis=-1) + 0.5  # x and y of the pixels
    middle = np.array([45, 60])
    Image.fromarray(np.dstack([2 * place, np.zeros((120, 90))]).astype(np.uint8)).save(scene.paths[0])
    ray = (place - middle) / scene.camera(0).focal
    squared = (ray**2).sum(-1, keepdims=True)
    seen = ray * (1 + k1 * squared + k2 * squared**2) * 108 + middle
    assert np.abs(seen - place).max() > 4
    assert np.abs(scene.image(0)[..., :2] / 2 - seen).max() < 1


def test_sizes_keep_the_shape_whichever_way_the_photograph_stands(tmp_path):
    scene = read_capture(write_colmap(tmp_path / "a"))
    assert scene.target_size(0, 20) == (20, 15) and scene.image(0, (20, 15)).shape == (20, 15, 3)
    scene = dataclasses.replace(scene, sizes=scene.sizes[:, ::-1])
    assert scene.target_size(0, 20) == (15, 20)
    with pytest.raises(VisionKitError, match="000.png: is 30x40, its camera is 40x30"):
        scene.image(0)


def test_smaller_photographs_than_their_cameras(tmp_path):
    folder = write_colmap(tmp_path / "a")
    before = read_capture(folder)
    for path in before.paths:
        Image.open(path).resize((15, 20)).save(path)
    scene = read_capture(folder)
    assert len(scene) == 6 and scene.camera(0, (20, 15)).focal == before.camera(0, (20, 15)).focal
    assert scene.image(0, (20, 15)).shape == (20, 15, 3)
