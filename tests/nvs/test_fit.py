"""Fitting a field to a capture of coloured balls."""

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("pycolmap")
from nvs.captures.trees import arc, points_on_balls, write_colmap  # noqa: E402

from visionkit.errors import VisionKitError  # noqa: E402
from visionkit.nvs import fit as fitting  # noqa: E402
from visionkit.nvs import fit_rays  # noqa: E402
from visionkit.nvs.captures import read_capture  # noqa: E402
from visionkit.nvs.captures.scene import viewed_centre  # noqa: E402
from visionkit.nvs.scene_field import SceneField  # noqa: E402

SMALL = fitting.Settings(
    long_side=40,
    steps=60,
    density_steps=40,
    rays=256,
    point_rays=64,
    samples=32,
    density=24,
    colour=24,
    width=8,
    grid_rate=0.1,
    net_rate=0.03,
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return read_capture(write_colmap(tmp_path_factory.mktemp("fit") / "balls", arc(9), xyz=points_on_balls()))


def bounds():
    half = torch.tensor([0.5, 1.0, 2.0])
    return fit_rays.Bounds(torch.tensor([1.0, 0.0, 0.0]), half, near=0.5, middle=3.0, far=30.0)


def test_the_warp_is_linear_in_the_box_and_holds_the_world():
    warp = bounds().warp
    assert torch.allclose(warp(torch.tensor([1.25, -1.0, 2.0])), fit_rays.INNER * torch.tensor([0.5, -1, 1]))
    far = warp(torch.tensor([[1e6, -1e6, 0.0]]))
    assert torch.allclose(far, torch.tensor([[1.0, -1.0, 0.0]]), atol=1e-3) and (far.abs() <= 1).all()
    line = warp(torch.stack([torch.linspace(-50, 50, 999)] * 3, dim=1))
    assert (line.diff(dim=0) > 0).all() and line.diff(dim=0).max() < 0.2


def test_intervals_cover_near_to_far_in_order():
    edges = bounds().edges(5, 40)
    assert edges[0, 0] == pytest.approx(0.5) and edges[0, 30] == pytest.approx(3) and edges[0, -1] == pytest.approx(30)
    moved = bounds().edges(5, 40, torch.Generator().manual_seed(0))
    assert (moved.diff(dim=1) >= 0).all() and not torch.equal(moved[0], moved[1])
    assert torch.equal(moved[:, [0, -1]], edges[:, [0, -1]])


def test_a_finer_grid_is_the_same_function():
    torch.manual_seed(0)
    model = SceneField(SMALL, bounds(), 2)
    points = torch.rand(1, 500, 3) - 0.5
    before = model.field().density(points)
    model.grow(1)
    assert model.density_grid.planes.shape[-1] == 12 and model.colour_grid.vectors.shape[-2] == 12
    after = model.field().density(points)
    assert (after - before).abs().mean() < 0.3 * before.std()


def test_point_rays_end_at_the_points_and_carry_their_colours(scene):
    rays = fit_rays.point_rays_of(scene, [3], [scene.image(3)])
    ends = rays.origins + rays.directions * rays.distance[:, None]
    gaps = torch.cdist(ends, torch.tensor(scene.points).float()).min(dim=1).values
    assert len(ends) > 150 and gaps.max() < 1e-3
    pixels = fit_rays.pixel_rays_of(scene, [3], [scene.image(3)])
    nearest = (rays.directions @ pixels.directions.T).argmax(dim=1)
    assert (pixels.rgb[nearest] - rays.rgb).abs().mean() < 0.1


def test_distance_error_of_rays_that_hit_miss_and_end_nowhere():
    middle = torch.tensor([[1.0, 2.0, 3.0]]).expand(3, 3)
    weights = torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 0, 0]])
    errors = [fitting.distance_error(weights[i : i + 1], middle[:1], torch.tensor([2.0])).item() for i in range(3)]
    assert errors == pytest.approx([0, 0.5, 1])


def test_a_fit_explains_views_that_it_has_not_seen_and_repeats_itself(scene):
    rows, held_out = fitting.split(scene)
    assert held_out == [0, 8] and rows == [1, 2, 3, 4, 5, 6, 7]
    model = fitting.fit(scene, rows, SMALL)
    truth = scene.image(8) / 255
    rgb, depth = model.render(scene.camera(8))
    assert rgb.shape == (40, 30, 3) and depth.shape == (40, 30) and np.isfinite(depth).all()
    assert np.mean((rgb - truth) ** 2) < 0.5 * truth.var()
    once, again = (fitting.fit(scene, rows, SMALL._replace(steps=3)).state_dict() for _ in range(2))
    assert all(torch.equal(once[key], again[key]) for key in once)


def test_without_points_it_still_runs(tmp_path):
    scene = read_capture(write_colmap(tmp_path / "balls", arc(5), points=0))
    rows, _ = fitting.split(scene)
    model = fitting.fit(scene, rows, SMALL._replace(steps=2))
    assert np.isfinite(model.render(scene.camera(0))[0]).all()


def test_points_that_no_photo_was_matched_to_still_give_bounds(scene):
    rows, _ = fitting.split(scene)
    images = [scene.image(row) for row in rows]
    bare = dataclasses.replace(scene, visible=(np.zeros(0, int),) * len(scene))
    matched, seen = (fit_rays.find_bounds(each, fit_rays.point_rays_of(each, rows, images)) for each in (scene, bare))
    assert torch.allclose(matched.half, seen.half, rtol=0.3) and torch.allclose(matched.centre, seen.centre, atol=0.1)
    assert seen.near == pytest.approx(matched.near, rel=0.1) and seen.far == pytest.approx(matched.far, rel=0.1)


def test_points_that_no_photo_was_matched_to_tell_distances_too(scene):
    bare = dataclasses.replace(scene, visible=(np.zeros(0, int),) * len(scene))
    rays, told = (fit_rays.point_rays_of(each, [3], [scene.image(3)]) for each in (bare, scene))
    ends = rays.origins + rays.directions * rays.distance[:, None]
    assert torch.cdist(ends, torch.tensor(scene.points).float()).min(dim=1).values.max() < 1e-3
    assert 0.4 * len(told.origins) < len(ends) < len(told.origins)  # those behind others are left out
    rows, _ = fitting.split(scene)
    rgb, _ = fitting.fit(bare, rows, SMALL).render(scene.camera(8))
    truth = scene.image(8) / 255
    assert np.mean((rgb - truth) ** 2) < 0.8 * truth.var()


def test_points_behind_others_tell_no_distances_where_nobody_says_who_saw_them(scene):
    camera = scene.camera(3)
    line = camera.centre + camera.c2w[:, 2] * np.array([[1.0], [1.05], [2.0], [-1.0]])
    one = dataclasses.replace(scene, points=line, visible=(np.zeros(0, int),) * len(scene))
    assert fit_rays.point_rays_of(one, [3], [scene.image(3)]).distance.tolist() == pytest.approx([1, 1.05])


def test_a_scanner_s_cloud_is_thinned(scene, monkeypatch):
    monkeypatch.setattr(fit_rays, "MOST_POINTS", 50)
    bare = dataclasses.replace(scene, visible=(np.zeros(0, int),) * len(scene))
    assert 25 <= len(fit_rays.point_rays_of(bare, [3], [scene.image(3)]).origins) <= 50


def test_a_capture_without_points_is_fitted_and_filmed_where_its_cameras_look(scene):
    rows, _ = fitting.split(scene)
    bare = dataclasses.replace(scene, points=np.zeros((0, 3)), visible=(np.zeros(0, int),) * len(scene))
    bounds = fit_rays.find_bounds(bare, fit_rays.point_rays_of(bare, rows, [scene.image(row) for row in rows]))
    assert np.linalg.norm(bounds.centre.numpy() - viewed_centre(scene.c2w)) < 1e-3
    assert 0 < bounds.near < np.linalg.norm(scene.centres, axis=1).min() < bounds.middle
    for name in (None, "orbit"):
        for camera in fitting.path(bare, rows, bounds, 40, name, 6):
            towards = bounds.centre.numpy() - camera.centre
            assert camera.c2w[:, 2] @ towards / np.linalg.norm(towards) > 0.999


def test_paths_of_the_video(scene):
    rows, _ = fitting.split(scene)
    found = fit_rays.find_bounds(scene, fit_rays.point_rays_of(scene, rows, [scene.image(row) for row in rows]))
    for name in (None, "swing", "dolly"):
        cameras = fitting.path(scene, rows, found, 40, name, 6)
        assert len(cameras) == 6 and cameras[0].size == (40, 30)
        for camera in cameras:
            assert 1 < np.linalg.norm(camera.centre) < 3 and camera.c2w[1, 1] > 0.7


def test_a_path_is_found_for_a_field_on_a_device_without_float64(scene):
    class Centre:  # on mps: only on the CPU it can be doubled
        def cpu(self):
            return torch.zeros(3)

    bounds = fit_rays.Bounds(Centre(), torch.ones(()), near=0.5, middle=3.0, far=30.0)
    assert len(fitting.path(scene, fitting.split(scene)[0], bounds, 40, "swing", 6)) == 6


def test_what_cannot_be_fitted(scene):
    with pytest.raises(VisionKitError, match="at least 4"):
        fitting.split(scene.subset([0, 1, 2]))
    with pytest.raises(VisionKitError, match="--size"):
        fitting.check(SMALL._replace(long_side=4))
    with pytest.raises(VisionKitError, match="--steps"):
        fitting.check(SMALL._replace(steps=0))
    with pytest.raises(VisionKitError, match="--resolution: expected a multiple of 8"):
        fitting.check(SMALL._replace(colour=102))
    with pytest.raises(VisionKitError, match="--seed"):
        fitting.check(SMALL._replace(seed=2**63))
