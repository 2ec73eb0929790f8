"""Fits that start at NViST's prediction."""

import numpy as np
import pytest
import torch

pytest.importorskip("pycolmap")
from nvs.captures.trees import arc, points_on_balls, write_colmap  # noqa: E402
from nvs.test_inferencer import TINY  # noqa: E402

from visionkit.nvs import fit as fitting  # noqa: E402
from visionkit.nvs.captures import read_capture  # noqa: E402
from visionkit.nvs.fit_rays import Bounds  # noqa: E402
from visionkit.nvs.inferencer import NVSInferencer  # noqa: E402
from visionkit.nvs.model import NViST  # noqa: E402
from visionkit.nvs.scene_field import SceneField  # noqa: E402
from visionkit.nvs.warm_start import WarmStart, in_frame_of, opaqueness  # noqa: E402

SETTINGS = fitting.Settings(40, 2, 2, 128, 32, 16)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return read_capture(write_colmap(tmp_path_factory.mktemp("start") / "balls", arc(9), xyz=points_on_balls()))


def test_the_input_camera_stands_where_nvist_wants_it_and_sees_the_same(scene):
    moved, distance = in_frame_of(scene, 3, "viewed")
    assert np.allclose(moved.c2w[3], np.concatenate([np.eye(3), [[0], [0], [-distance]]], axis=1))
    pixels = []
    for each in (scene, moved):
        local = (each.points - each.centres[5]) @ each.c2w[5, :, :3] @ each.K[5].T
        pixels.append(local[:, :2] / local[:, 2:])
    assert np.allclose(*pixels)


@pytest.mark.parametrize("change", [{}, dict(frustum_depths=8, background="learned"), dict(representation="triplanes")])
def test_the_field_begins_as_the_prediction(scene, change):
    torch.manual_seed(0)
    start = WarmStart(NVSInferencer(NViST(**TINY, **change)), scene, 3)
    start.grids.planes.mul_(40)
    bounds = Bounds(torch.zeros(3), torch.full((3,), start.box), 0.1, 2.0, 20.0)
    field = SceneField(start.settings(SETTINGS), bounds, 1)
    start(field)
    points = (torch.rand(1, 4000, 3) * 2 - 1) * 0.9
    opacity, colour = start.predicted(points)
    there = bounds.warp(points * start.box)
    with torch.no_grad():
        found = field.field()
        off = opaqueness(found.density(there)) - opacity
        off_colour = (found.colour(there, torch.zeros_like(points)) - colour)[opacity > 0.1]
    assert opacity.var() > 1e-3
    assert off.square().mean() < 0.3 * opacity.var()
    assert off_colour.square().mean() < 0.3 * colour[opacity > 0.1].var(dim=0).mean() + 1e-3


def test_it_trains_on(scene):
    start = WarmStart(NVSInferencer(NViST(**TINY)), scene, 3)
    model = fitting.fit(start.scene, [1, 2, 3, 4], start.settings(SETTINGS), start=start)
    assert np.isfinite(model.render(start.scene.camera(3))[0]).all()
