"""The procedural scenes: exact geometry, COLMAP's files, disjoint layouts, repeatability, refusals."""

import json
import math
import runpy
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "datasets" / "synthesize_views.py"
sys.path.insert(0, str(SCRIPT.parent))
import synthesize_views  # noqa: E402
import views_render  # noqa: E402
import views_scenes  # noqa: E402
import views_shapes  # noqa: E402

pycolmap = pytest.importorskip("pycolmap")
SETTINGS = synthesize_views.Settings(scenes=2, test_scenes=1, views=12, size=(48, 27), seed=3)
ARGUMENTS = ["--scenes", "2", "--test-scenes", "1", "--views", "12", "--size", "48x27", "--seed", "3", "--workers", "1"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    out = tmp_path_factory.mktemp("views") / "tree"
    synthesize_views.main(["--out", str(out), *ARGUMENTS])
    return out


@pytest.fixture(scope="module")
def scene():
    category, number = synthesize_views.plan(SETTINGS)[0]
    return synthesize_views.make_scene(category, number, SETTINGS, "cpu")


@pytest.mark.parametrize("name", views_shapes.SHAPES)
def test_rays_end_on_the_surface_and_normals_face_them(name):
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(4000, 3, generator=generator), dim=1)
    origin = -3 * direction + 0.9 * torch.randn(4000, 3, generator=generator)
    t, normal = views_shapes.SHAPES[name](origin, 0.5 * direction)
    hit = t.isfinite()
    assert 0.02 < hit.float().mean() < 0.9
    points = (origin + 0.5 * direction * t[:, None])[hit]
    assert (signed_distance(name, points).abs() < 0.01).float().mean() > 0.99
    assert points.norm(dim=1).max() <= views_shapes.REACH[name] + 1e-3
    facing = -(direction[hit] * torch.nn.functional.normalize(normal[hit], dim=1)).sum(dim=1)
    assert (facing > -0.05).float().mean() > 0.98


def signed_distance(name, p):
    """The distance in the shape's own space, zero on its surface, written without the tracer's formulas."""
    x, y, z = p.T
    around = torch.hypot(x, y)
    if name == "ellipsoid":
        return p.norm(dim=1) - 1
    if name == "box":
        return p.abs().amax(dim=1) - 1
    if name == "cylinder":
        return torch.maximum(around - 1, z.abs() - 1)
    if name == "cone":
        return torch.maximum(around - (1 - z) / 2, -1 - z)
    return getattr(views_shapes, f"{name}_distance")(p)


def test_a_straight_ray_meets_ball_and_ground_where_geometry_says():
    ball = views_scenes.Thing("ellipsoid", np.array([0.0, 0.0, 0.3]), np.eye(3), np.array([0.3, 0.2, 0.3]))
    surface = views_scenes.Surface(np.ones((2, 3)) * 0.5, np.ones((3, 4)), np.zeros(4))
    world = views_scenes.World([ball], [surface] * 3, "square", 0.0, np.array([0.0, 0.0, 1.0]), 0.5, 0.5)
    tracer = views_render.Tracer(world)
    origin = torch.tensor([[0.0, -1.5, 0.3], [0.0, -1.5, 0.3], [0.0, -1.5, 0.3]])
    direction = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, -0.3], [0.4, 1.0, 0.0]])
    t, surface, normal = tracer.trace(origin, direction)
    assert t.tolist() == pytest.approx([1.3, 1.0, 2.4])
    assert surface.tolist() == [2, 0, 1]
    assert torch.allclose(normal, torch.tensor([[0.0, -1, 0], [0, 0, 1], [0, -1, 0]]), atol=1e-6)
    under, beside = torch.tensor([[0.1, 0.05, 0.0], [0.5, 0.0, 0.0]])
    assert tracer.in_shadow(torch.stack([under, beside])).tolist() == [True, False]


def test_depth_carries_pixels_from_view_to_view(scene):
    """A pixel lifted by its depth lands, in the next view, on the same depth and the same colour, or is hidden."""
    height, width = SETTINGS.size
    rows, columns = np.mgrid[:height, :width]
    focal = scene["focal"]
    local = np.stack([(columns + 0.5 - width / 2) / focal, (rows + 0.5 - height / 2) / focal, np.ones((height, width))])
    first, second = scene["c2w"][5], scene["c2w"][6]
    world = np.einsum("ij,jhw->ihw", first[:, :3], local * scene["depths"][5]) + first[:, 3, None, None]
    there = np.einsum("ji,jhw->ihw", second[:, :3], world - second[:, 3, None, None])
    column = there[0] / there[2] * focal + width / 2
    row = there[1] / there[2] * focal + height / 2
    inside = (row >= 0.5) & (row < height - 0.5) & (column >= 0.5) & (column < width - 0.5)
    i, j = row[inside].astype(int), column[inside].astype(int)
    same = np.abs(scene["depths"][6][i, j] - there[2][inside]) < 0.05
    assert inside.mean() > 0.6 and same.mean() > 0.8
    difference = np.abs(scene["images"][6][i, j].astype(float) - scene["images"][5][inside])[same]
    assert np.median(difference) < 6


def test_the_tree_is_a_colmap_capture(tree):
    folders = sorted(path.parent.parent for path in tree.glob("*/*/sparse/0"))
    assert len(folders) == 3
    for folder in folders:
        model = pycolmap.Reconstruction(folder / "sparse" / "0")
        names = sorted(path.name for path in (folder / "images").iterdir())
        assert names == sorted(image.name for image in model.images.values())
        assert cv2.imread(str(folder / "images" / names[0])).shape == (48, 27, 3)
        depths = np.load(folder / "depth.npy")
        assert depths.shape == (12, 48, 27) and len(model.points3D) > 100
        checked = 0
        for view, image in ((names.index(image.name), image) for image in model.images.values()):
            for point in image.points2D:
                xyz = model.points3D[point.point3D_id].xyz
                assert image.project_point(xyz) == pytest.approx(point.xy, abs=1e-6)
                z = (image.cam_from_world() * xyz)[2]
                assert z == pytest.approx(depths[view][tuple(point.xy[::-1].astype(int))], rel=0.02)
                checked += 1
        tracks = sum(len(point.track.elements) for point in model.points3D.values())
        assert checked == tracks > 1000


def test_test_layouts_are_never_trained_on(tree):
    train, test = views_scenes.categories(False), views_scenes.categories(True)
    assert len(train) > 200 and not set(train) & set(test)
    assert {name.split("_")[0] for name in train}.isdisjoint(views_scenes.TEST_LAYOUTS)
    assert json.loads((tree / "test_classes.json").read_text()) == test
    classes = [path.name for path in tree.iterdir() if path.is_dir()]
    assert sum(name in test for name in classes) == 1 and sum(name in train for name in classes) == 2


def test_every_layout_makes_a_world():
    for layout in views_scenes.LAYOUTS:
        for count in views_scenes.COUNTS:
            world = views_scenes.sample_world(f"{layout}_mixed_corner_{count}", np.random.default_rng(1))
            assert 2 <= len(world.things) <= 8 and len(world.surfaces) == len(world.things) + 2
            assert max(np.hypot(*thing.centre[:2]) for thing in world.things) < 0.9


@pytest.mark.parametrize("seed", range(20))
def test_the_camera_stays_inside_the_room(seed):
    path = synthesize_views.hand_held_path(np.random.default_rng(seed), 20)
    away = path[:, :2, 3] - views_scenes.ROOM_CENTRE
    assert np.linalg.norm(away, axis=1).max() < views_scenes.ROOM_RADIUS
    assert np.allclose(np.einsum("vij,vik->vjk", path[:, :, :3], path[:, :, :3]), np.eye(3))
    turn = np.arccos(np.clip(path[0, :, 2] @ path[-1, :, 2], -1, 1))
    assert math.radians(35) < turn < math.radians(115)


def test_a_stopped_run_goes_on_to_the_same_pictures(tree, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(tree, out)
    gone = sorted(out.glob("*/*/images"))[0].parent
    shutil.rmtree(gone)
    synthesize_views.main(["--out", str(out), *ARGUMENTS])
    for path in sorted(path for path in tree.rglob("*") if path.is_file()):
        assert (out / path.relative_to(tree)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--views", "2"], "--views 2"),
        (["--size", "160"], "HEIGHTxWIDTH"),
        (["--seed", "-1"], "--seed -1"),
        (["--workers", "0"], "--workers 0"),
        (["--scenes", "0", "--test-scenes", "0"], "expected at least one scene"),
    ],
)
def test_wrong_options_are_one_line(arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        synthesize_views.main(["--out", str(tmp_path / "x"), *arguments])
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and words in lines[0] and not list(tmp_path.iterdir())
    assert not (tmp_path / "x").exists()


def test_folders_of_others_are_refused(tree, tmp_path, capsys):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    for out, words in ((tmp_path, "without SYNTHETIC.txt"), (tree, "other settings")):
        with pytest.raises(SystemExit):
            synthesize_views.main(["--out", str(out), "--scenes", "7"])
        assert words in capsys.readouterr().err


def test_an_interruption_says_that_finished_scenes_stay(tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(views_render, "render_views", interrupt)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--out", str(tmp_path), *ARGUMENTS])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert end.value.code == 130
    assert "interrupted; the same command goes on with the scenes that are missing\n" in capsys.readouterr().err
