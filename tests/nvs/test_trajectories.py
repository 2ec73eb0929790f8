"""Camera paths."""

import json

import numpy as np
import pytest

from visionkit.errors import VisionKitError
from visionkit.nvs.cameras import look_at
from visionkit.nvs.trajectories import TRAJECTORIES, curve, poses, through


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_paths_start_at_the_input_view_and_always_look_at_the_point(name):
    c2w = poses(curve(name, 24), 1.3)
    assert c2w.shape == (24, 3, 4)
    assert np.allclose(c2w[0], np.concatenate([np.eye(3), [[0], [0], [-1.3]]], axis=1), atol=1e-9)
    for pose in c2w:
        assert pose[:, :3].T @ pose[:, :3] == pytest.approx(np.eye(3)) and np.linalg.det(pose[:, :3]) > 0
        assert np.cross(pose[:, 2], -pose[:, 3]) == pytest.approx(np.zeros(3), abs=1e-9)
    steps = np.linalg.norm(np.diff(c2w[:, :, 3], axis=0, append=c2w[:1, :, 3]), axis=1)
    assert steps.max() < 0.8  # no jump, the closing step included


def test_directions():
    right, up, close = (poses(np.array([[a, e, d]]), 2.0)[0, :, 3] for a, e, d in ((30, 0, 1), (0, 30, 1), (0, 0, 0.5)))
    assert right == pytest.approx([1, 0, -(3**0.5)]) and up == pytest.approx([0, -1, -(3**0.5)])
    assert close == pytest.approx([0, 0, -1])
    assert curve("swing", 8, 10)[:, 0].max() == pytest.approx(10)


def test_a_base_moves_the_whole_path():
    base = look_at((1, 2, 3), (0, 0, 0))
    c2w = poses(curve("swing", 4), 2.0, base)
    assert c2w[0, :, 3] == pytest.approx(base[:, 3] - 2 * base[:, 2]) and np.allclose(c2w[0, :, :3], base[:, :3])


def test_a_file_of_key_frames(tmp_path):
    file = tmp_path / "a.json"
    frames = [{"azimuth": -20}, {"azimuth": 20, "elevation": 5, "distance": 0.9}, {}]
    file.write_text(json.dumps(frames), encoding="utf-8-sig")  # with the mark that editors on Windows put first
    path = curve(str(file), 5)
    assert np.allclose(path[[0, 2, 4]], [[-20, 0, 1], [20, 5, 0.9], [0, 0, 1]])


@pytest.mark.parametrize(
    "text, words",
    [
        ('[{"azimut": 3}, {}]', "key frame 0: 'azimut' is unknown; did you mean 'azimuth'"),
        ('[{}, {"distance": "far"}]', "key frame 1: distance is 'far'; expected a number from 0.05 to 20"),
        ('[{}, {"elevation": 120}]', "from -89 to 89"),
        ("[{}, 3]", "key frame 1: expected an object"),
        ("[{}]", "2 or more"),
        ("[{},", "not valid JSON"),
    ],
)
def test_typos_in_a_file_are_named(tmp_path, text, words):
    file = tmp_path / "path.json"
    file.write_text(text)
    with pytest.raises(VisionKitError, match=words) as error:
        curve(str(file), 5)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_wrong_names_and_numbers(tmp_path):
    with pytest.raises(VisionKitError, match="did you mean 'swing'"):
        curve("swnig", 4)
    with pytest.raises(VisionKitError, match="no such trajectory file"):
        curve(str(tmp_path / "x.json"), 4)
    for frames in (0, 2.0):
        with pytest.raises(VisionKitError, match=f"--frames={frames}: expected a whole number of at least 1"):
            curve("swing", frames)
    with pytest.raises(VisionKitError, match="--degrees"):
        curve("swing", 4, 400)
    for name in ("dolly", "path.json"):
        with pytest.raises(VisionKitError, match=f"--degrees: .* not for {name}; leave it out"):
            curve(name, 4, 10)


def test_a_way_along_cameras_stays_near_them():
    angles = np.radians(np.linspace(-40, 30, 9))
    eyes = np.stack([2 * np.sin(angles), -0.3 + 0 * angles, 1 - 2 * np.cos(angles)], axis=1)
    target = np.array([0, 0.1, 1.0])
    c2w = np.stack([look_at(eye, target) for eye in eyes])
    way = through(c2w, target, 30)
    gap = np.linalg.norm(way[:, None, :, 3] - eyes[None], axis=-1).min(axis=1)
    assert gap.max() < 0.2
    assert 1.2 < np.ptp(way[:, 0, 3]) < 1.6  # most of the way, not the last photographs
    assert (way[:, :, 1] @ c2w[4, :, 1] > 0.9).all()  # upright
