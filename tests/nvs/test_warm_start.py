"""Fits that start at NViST's prediction."""

import numpy as np
import pytest
import torch

pytest.importorskip("pycolmap")
from nvs.captures.trees import arc, points_on_balls, write_colmap  # noqa: E402
from nvs.test_inferencer import TINY  # noqa: E402

from visionkit.errors import VisionKitError  # noqa: E402
from visionkit.nvs import fit as fitting  # noqa: E402
from visionkit.nvs.captures import read_capture  # noqa: E402
from visionkit.nvs.inferencer import NVSInferencer  # noqa: E402
from visionkit.nvs.model import NViST  # noqa: E402
from visionkit.nvs.warm_start import WarmStart, in_frame_of  # noqa: E402

SETTINGS = fitting.Settings(40, 2, 2, 128, 32, 16)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return read_capture(write_colmap(tmp_path_factory.mktemp("start") / "balls", arc(9), xyz=points_on_balls()))


def test_the_input_camera_stands_where_nvist_wants_it_and_sees_the_same(scene):
    moved, distance = in_frame_of(scene, 3)
    assert np.allclose(moved.c2w[3], np.concatenate([np.eye(3), [[0], [0], [-distance]]], axis=1))
    pixels = []
    for each in (scene, moved):
        local = (each.points - each.centres[5]) @ each.c2w[5, :, :3] @ each.K[5].T
        pixels.append(local[:, :2] / local[:, 2:])
    assert np.allclose(*pixels)


def test_the_field_begins_as_the_prediction(scene):
    torch.manual_seed(0)
    model = NViST(**TINY).eval()
    start = WarmStart(NVSInferencer(model), scene, 3)
    start.grids.planes.mul_(40)
    settings = start.settings(SETTINGS)
    half = torch.full((3,), start.box)
    bounds = fitting.Bounds(torch.zeros(3), half, 0.1, 2.0, 20.0)
    field = fitting.SceneField(settings, bounds, 1)
    start(field)
    with torch.no_grad():
        points = (torch.rand(1, 800, 3) * 2 - 1) * 0.75
        ways = torch.nn.functional.normalize(torch.randn(1, 800, 3), dim=-1)
        expected = model.renderer.field(*start.grids)
        actual = field.field()
        here, there = points / start.box, bounds.warp(points)
        density = expected.density(here)
        assert density.max() > 5
        # Moved below zero by 25 * 0.2, and a little smoother.
        assert (actual.density(there) - (density - 5).clamp_min(0)).abs().max() < 0.1 * density.max() + 2
        assert (actual.colour(there, ways) - expected.colour(here, ways)).abs().mean() < 0.02


def test_it_trains_on(scene):
    start = WarmStart(NVSInferencer(NViST(**TINY)), scene, 3)
    model = fitting.fit(start.scene, [1, 2, 3, 4], start.settings(SETTINGS), start=start)
    assert np.isfinite(model.render(start.scene.camera(3))[0]).all()


def test_other_representations_are_refused(scene):
    with pytest.raises(VisionKitError, match="triplanes"):
        WarmStart(NVSInferencer(NViST(**TINY, representation="triplanes")), scene, 3)
