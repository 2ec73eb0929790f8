"""New views from Python and from the command line, by a model of a few tokens."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nvs.captures.trees import write_transforms
from PIL import Image

from visionkit import apis
from visionkit.cli import main
from visionkit.engine.checkpoints import save_checkpoint
from visionkit.errors import VisionKitError
from visionkit.nvs.cameras import Camera
from visionkit.nvs.captures import read_capture
from visionkit.nvs.inferencer import NVSInferencer, crop, square_pixels
from visionkit.nvs.model import NViST
from visionkit.nvs.trajectories import FILE_KEYS, poses

TINY = dict(
    img_size=(20, 10),
    encoder_embed_dim=16,
    encoder_depth=2,
    encoder_num_heads=2,
    decoder_embed_dim=16,
    decoder_depth=2,
    decoder_num_heads=2,
    decoder_output_dim=8,
    sigma_dim=2,
    rgb_dim=6,
    resolution=6,
    rgb_feature_dim=8,
    num_samples=6,
    lpips_weight=0,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return NViST(**TINY)


@pytest.fixture
def weights(tmp_path, model):
    meta = dict(
        model=json.dumps(dict(type="visionkit.NViST", **TINY)), distance=0.7, near_far=[0.1, 2.0], centre="viewed"
    )
    save_checkpoint(dict(meta=meta, state_dict=model.state_dict()), tmp_path / "w" / "tiny.pth")
    return str(tmp_path / "w" / "tiny.pth")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "cat.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(path)
    return path


def test_views_follow_the_path_and_come_one_by_one(model, photo):
    assert apis.NVSInferencer is NVSInferencer
    nvs = NVSInferencer(model)
    calls, look = [], nvs.look
    nvs.look = lambda grids, camera, distance: calls.append(camera) or look(grids, camera)
    views = nvs.render(photo, frames=4, long_side=40)
    first = next(views)
    assert len(calls) == 1  # the first view does not wait for the others
    assert first.rgb.shape == (40, 20, 3) and first.rgb.dtype == np.uint8 and first.depth.shape == (40, 20)
    assert len(list(views)) == 3
    assert calls[0].focal == pytest.approx((0.78 * 40 * 40 / 40,) * 2)
    assert np.allclose(calls[0].c2w[:, 3], [0, 0, -nvs.distance])


def test_the_lens_and_the_distance_reach_the_model(model, photo, monkeypatch):
    nvs, seen = NVSInferencer(model), []
    represent = model.represent
    monkeypatch.setattr(model, "represent", lambda image, camera: seen.append(camera) or represent(image, camera))
    next(nvs.render(photo, frames=1, fov=60, distance=0.9))
    distance, focal = seen[0][0].tolist()
    # 40 rows fill the 20 of the model: the focal length over the height is that over the long side.
    assert distance == pytest.approx(0.9) and focal == pytest.approx(1 / (2 * np.tan(np.radians(30))), rel=1e-5)


def test_cropping_keeps_the_middle_and_the_angle():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 30:50] = 255
    small, focal = crop(image, 60.0, (20, 10))
    assert small.shape == (20, 10, 3) and small.min() == 255 and focal == 30


@pytest.mark.parametrize("shape", [(40, 81), (41, 80), (81, 40), (61, 33)])
def test_a_crop_of_half_pixels_leaves_the_middle_in_the_middle(shape):
    across = np.abs(np.linspace(-1, 1, shape[1])) + np.abs(np.linspace(-1, 1, shape[0]))[:, None]
    image = np.repeat((across * 120).astype(np.uint8)[..., None], 3, axis=2)
    small, focal = crop(image, 60.0, (20, 10))
    off = small.astype(int) - small[::-1, ::-1]
    assert np.abs(off).max() <= 1 and focal == pytest.approx(60 / min(shape[0] / 20, shape[1] / 10))


def test_a_checkpoint_brings_its_scale(weights, model):
    nvs = NVSInferencer(weights)
    assert nvs.distance == 0.7 and nvs.near_far == (0.1, 2.0) and nvs.centre == "viewed"
    assert NVSInferencer(model).centre == "cube"  # as released, where a checkpoint does not say
    for key, value in model.state_dict().items():
        assert torch.equal(nvs.model.state_dict()[key], value)


def test_a_checkpoint_of_another_size_is_refused(tmp_path, model):
    config = dict(type="visionkit.NViST", **{**TINY, "rgb_feature_dim": 16})
    save_checkpoint(dict(meta=dict(model=json.dumps(config)), state_dict=model.state_dict()), tmp_path / "x.pth")
    with pytest.raises(VisionKitError, match="x.pth.*another size"):
        NVSInferencer(tmp_path / "x.pth")
    save_checkpoint(dict(meta={}, state_dict=model.state_dict()), tmp_path / "y.pth")
    with pytest.raises(VisionKitError, match="y.pth: does not say"):
        NVSInferencer(tmp_path / "y.pth")


def test_small_weights_and_their_absence(tmp_path, model, monkeypatch):
    from visionkit.nvs import weights as files

    files.save_small(tmp_path / "s.safetensors", model, TINY, dict(distance=0.6, near_far=[0.2, 1.5]))
    assert NVSInferencer(tmp_path / "s.safetensors").distance == 0.6
    monkeypatch.setattr(files, "SHIPPED", tmp_path / "s.safetensors")
    assert NVSInferencer().near_far == (0.2, 1.5)
    monkeypatch.setattr(files, "SHIPPED", tmp_path / "none.safetensors")
    with pytest.raises(VisionKitError, match="bundled small model is missing"):
        NVSInferencer()


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(near_far=[2.0, 0.1]), r"near_far is \[2.0, 0.1\]; expected two numbers, 0 < near < far"),
        (dict(near_far=[0.0, 1.0]), "near_far is"),
        (dict(near_far=1.0), "near_far is"),
        (dict(near_far=["a", 2]), "near_far is"),
        (dict(distance=float("inf")), "distance is inf; expected a number above 0"),
        (dict(distance=-1), "distance is -1"),
        (dict(distance=None), "distance is None"),
        (dict(centre="middle"), "centre is 'middle'; expected one of viewed, cube"),
        (dict(centre=["cube"]), "centre is"),
    ],
)
def test_a_scale_that_cannot_be_is_named_with_its_file(tmp_path, model, change, words):
    from visionkit.nvs.weights import save_small

    save_small(tmp_path / "s.safetensors", model, TINY, change)
    with pytest.raises(VisionKitError, match=f"s.safetensors: {words}"):
        NVSInferencer(tmp_path / "s.safetensors")
    meta = dict(change, model=json.dumps(dict(type="visionkit.NViST", **TINY)))
    save_checkpoint(dict(meta=meta, state_dict=model.state_dict()), tmp_path / "s.pth")
    with pytest.raises(VisionKitError, match=f"s.pth: {words}"):
        NVSInferencer(tmp_path / "s.pth")


def test_a_scale_that_is_no_table_is_refused(tmp_path, model):
    from visionkit.nvs.weights import save_small

    save_small(tmp_path / "s.safetensors", model, TINY, [1])
    with pytest.raises(VisionKitError, match="s.safetensors: does not describe the scenes"):
        NVSInferencer(tmp_path / "s.safetensors")


def test_one_command_renders_a_photo(weights, photo, tmp_path, capsys):
    out = tmp_path / "out" / "cat.mp4"
    assert main(["render", str(photo), "-o", str(out), "--weights", weights, "--frames", "3", "--size", "32"]) == 0
    assert out.stat().st_size > 500 and Image.open(out.with_name("cat_sheet.jpg")).width > 100
    assert "no focal length" in capsys.readouterr().out


def test_a_folder_gives_a_video_each_and_passes_over_what_is_no_photo(weights, photo, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.open(photo).save(folder / "a.png")
    Image.new("RGBA", (64, 48), (255, 0, 0, 9)).save(folder / "b.png")
    Image.new("RGB", (1, 1)).save(folder / "c.png")
    Image.open(photo).convert("L").save(folder / "b.bmp")
    out = tmp_path / "views"
    assert main(["render", str(folder), "-o", str(out), "--weights", weights, "--frames", "2"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        f"{name}{kind}" for name in ("a", "b.bmp", "b.png") for kind in (".mp4", "_sheet.jpg")
    ]
    assert "skipped" in capsys.readouterr().out


def test_contact_sheets_replace_no_photo(weights, photo, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.open(photo).save(folder / "a.jpg")
    before = (folder / "a.jpg").read_bytes()
    for out in (folder, tmp_path / "x" / ".." / "photos"):
        assert main(["render", str(folder), "-o", str(out), "--weights", weights, "--frames", "2"]) == 2
        assert "is the photos' folder" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["a.jpg"] and (folder / "a.jpg").read_bytes() == before
    Image.open(photo).save(folder / "a.png")  # a.jpg lies beside the video and is not what is rendered
    command = ["--weights", weights, "--frames", "2", "-o", str(folder / "a.mp4")]
    assert main(["render", str(folder / "a.png"), *command]) == 0
    assert (folder / "a.jpg").read_bytes() == before and (folder / "a_sheet.jpg").is_file()
    sheet = (folder / "a_sheet.jpg").read_bytes()
    assert main(["render", str(folder / "a_sheet.jpg"), *command]) == 2
    assert "would replace the photo" in capsys.readouterr().err and (folder / "a_sheet.jpg").read_bytes() == sheet


def test_pixels_that_are_no_squares_are_stretched_to_such(model, tmp_path):
    nvs = NVSInferencer(model)
    square = read_capture(write_transforms(tmp_path / "a"))
    wide = dataclasses.replace(square, K=square.K * [[2], [1], [1]], sizes=square.sizes * [1, 2])
    for path in square.paths:
        image = Image.open(path)
        image.resize((image.width * 2, image.height), Image.Resampling.NEAREST).save(path.with_suffix(".bmp"))
    wide = dataclasses.replace(wide, paths=tuple(path.with_suffix(".bmp") for path in square.paths))
    (image, focal), (other, other_focal) = square_pixels(square, 2), square_pixels(wide, 2)
    assert image.shape == other.shape and focal == other_focal
    assert np.abs(image.astype(int) - other).mean() < 8
    assert [name for name, *_ in nvs.views_of(wide, 2)] == list(square.names)


def test_a_path_from_a_capture_starts_at_its_own_distance(weights, tmp_path, monkeypatch):
    folder, seen = write_transforms(tmp_path / "a"), []
    represent = NVSInferencer.represent
    monkeypatch.setattr(NVSInferencer, "represent", lambda self, view: seen.append(view) or represent(self, view))
    command = ["render", str(folder), "--trajectory", "swing", "--frames", "2", "--weights", weights]
    assert main([*command, "-o", str(tmp_path / "x.mp4")]) == 0
    assert main([*command, "-o", str(tmp_path / "x.mp4"), "--distance", "0.4"]) == 0
    scene = read_capture(folder)
    assert seen[0].distance == pytest.approx(scene.normalised().scene.distances("viewed")[len(scene) // 2])
    assert seen[1].distance == 0.4 and seen[1].focal == pytest.approx(seen[0].focal)


def test_near_and_far_follow_the_camera():
    """The scene's unit is free: told another distance, or seen from further away, it is as opaque as before."""
    nvs, photo = NVSInferencer(), Path(__file__).parents[2] / "docs" / "images" / "photo.jpg"
    usual, far = (next(nvs.render(photo, frames=1, distance=distance)) for distance in (None, 2.0))
    assert np.abs(usual.rgb.astype(int) - far.rgb).mean() < 4
    assert np.abs(far.depth / usual.depth / (2 / nvs.distance) - 1).mean() < 0.05
    view, _ = nvs.read(photo)
    grids = nvs.represent(view)
    lens = Camera(np.eye(3, 4), (view.focal, view.focal), view.image.shape[:2])
    back = nvs.look(grids, lens.moved(poses(np.array([[0, 0, 2.0]]), view.distance)[0]))
    middle = slice(60, 100), slice(30, 60)
    assert back.depth[middle].mean() == pytest.approx(usual.depth[middle].mean() + view.distance, rel=0.1)


@pytest.mark.parametrize("option", ["--fov", "--distance"])
def test_a_zero_is_refused_with_a_capture_too(weights, tmp_path, capsys, option):
    folder = write_transforms(tmp_path / "a")
    command = ["render", str(folder), "--trajectory", "swing", "--frames", "2", "--weights", weights]
    assert main([*command, "-o", str(tmp_path / "x.mp4"), option, "0"]) == 2
    assert f"{option} 0: expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, words",
    [
        (["--trajectory", "obrit"], "did you mean 'orbit'"),
        (["--fov", "400"], "--fov 400"),
        (["--distance", "-1"], "--distance -1"),
        (["--size", "3"], "--size"),
        (["--frames", "0"], "--frames"),
        (["--weights", "none.pth"], "none.pth: no such checkpoint"),
        (["-o", "x.gif"], "ends in .mp4"),
        (["--fit"], "--fit needs a capture"),
        (["--steps", "9"], "--steps: is for --fit"),
        (["--seed", "0"], "--seed: is for --fit"),
        (["--resolution", "64"], "--resolution: is for --fit"),
        (["--device", "nowhere"], "device='nowhere'"),
    ],
)
def test_wrong_options_end_in_one_line(weights, photo, change, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["render", str(photo), "--weights", weights, "--frames", "2", *change]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not list(tmp_path.glob("*.mp4"))


def test_the_help_tells_the_limits_of_a_trajectory_file(capsys):
    with pytest.raises(SystemExit):
        main(["render", "--help"])
    told = capsys.readouterr().out.replace("\n", " ")
    assert all(f"{key}, {low:g} to {high:g} " in told for key, (low, high) in FILE_KEYS.items())


@pytest.mark.parametrize("out", ["file/x.mp4", "file/deep/x.mp4", "/proc/none/x.mp4", "x.mp4", "views"])
def test_an_out_that_cannot_be_written_is_told_before_the_work(photo, out, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("visionkit.nvs.inferencer.NVSInferencer", lambda *_: pytest.fail("the work began"))
    (tmp_path / "file").touch()
    (tmp_path / "x_sheet.jpg").mkdir()
    (tmp_path / "views" / "cat.mp4").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert main(["render", str(photo), "-o", out]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {out.split('.')[0].rsplit('/', 1)[0]}") and error.count("\n") == 1
    assert "give another" in error and sorted(tmp_path.rglob("*")) == before


def test_a_refusal_after_the_look_at_out_leaves_no_folder(photo, tmp_path, capsys):
    assert main(["render", str(photo), "-o", str(tmp_path / "a" / "b" / "x.mp4"), "--weights", "none.pth"]) == 2
    assert "none.pth" in capsys.readouterr().err and not (tmp_path / "a").exists()


def test_depths_of_a_photo_reach_the_warm_colours(tmp_path):
    photo = Path(__file__).parents[2] / "docs" / "images" / "photo.jpg"
    assert main(["render", str(photo), "-o", str(tmp_path / "v.mp4"), "--frames", "2"]) == 0
    sheet = np.asarray(Image.open(tmp_path / "v_sheet.jpg").convert("RGB")).astype(int)
    red, green, blue = np.moveaxis(sheet, -1, 0)
    assert ((red > 220) & (green > 80) & (blue < 60)).mean() > 0.01


@pytest.mark.parametrize("mode, size", [("1x1", (1, 1)), ("gone", None)])
def test_wrong_photos_end_in_one_line(weights, tmp_path, mode, size, capsys):
    path = tmp_path / f"{mode}.png"
    if size:
        Image.new("RGB", size).save(path)
    assert main(["render", str(path), "-o", str(tmp_path / "x.mp4"), "--weights", weights]) == 2
    assert f"{mode}.png" in capsys.readouterr().err


def test_a_capture_is_shown_beside_the_truth(weights, tmp_path, capsys, monkeypatch):
    pytest.importorskip("pycolmap")
    from nvs.captures.trees import write_colmap

    capture = write_colmap(tmp_path / "balls")
    out = tmp_path / "balls.mp4"
    assert main(["render", str(capture), "-o", str(out), "--weights", weights, "--size", "32"]) == 0
    assert "mean of 5 other photos: PSNR" in capsys.readouterr().out
    assert out.is_file() and out.with_name("balls_sheet.jpg").is_file()
    for option, value in (("--degrees", "9"), ("--frames", "0"), ("--frames", "5")):
        assert main(["render", str(capture), "-o", str(out), "--weights", weights, option, value]) == 2
        assert f"{option}: is for a path" in capsys.readouterr().err
    monkeypatch.setattr(NVSInferencer, "represent", lambda *_: pytest.fail("the work began"))
    for small in ([], ["--size", "21"]):  # the model's own views are 20 x 10
        assert main(["render", str(capture), "-o", str(out), "--weights", weights, *small]) == 2
        told = capsys.readouterr().err
        assert f"long_side={(small or ['', 20])[1]} (--size): " in told and "expected at least 22" in told
    monkeypatch.undo()
    path = tmp_path / "path.mp4"
    options = ["--trajectory", "dolly", "--frames", "2"]
    assert main(["render", str(capture), "-o", str(path), "--weights", weights, *options]) == 0


def test_a_capture_is_fitted_and_scored_on_photos_that_were_held_out(tmp_path, capsys, monkeypatch):
    pytest.importorskip("pycolmap")
    from nvs.captures.trees import arc, points_on_balls, write_colmap

    from visionkit.nvs import fit

    small = fit.Settings(40, 2, 2, 128, 32, 16, density=16, colour=16, width=8)
    monkeypatch.setattr(fit, "Settings", lambda: small)
    capture = write_colmap(tmp_path / "balls", arc(9), xyz=points_on_balls())
    out = tmp_path / "fit.mp4"
    for wrong in (["--frames", "0"], ["--degrees", "9"], ["--fov", "50"], ["--weights", "w.pth"], ["--device", "tpu"]):
        assert main(["render", str(capture), "-o", str(out), "--fit", *wrong]) == 2
        assert wrong[0].removeprefix("--") in capsys.readouterr().err
    (tmp_path / "fit_held_out.png").mkdir()
    assert main(["render", str(capture), "-o", str(out), "--fit"]) == 2
    assert "fit_held_out.png: is a folder" in capsys.readouterr().err
    (tmp_path / "fit_held_out.png").rmdir()
    monkeypatch.setattr(fit, "Settings", lambda: small._replace(long_side=14))
    monkeypatch.setattr(fit, "check", lambda settings: None)
    assert main(["render", str(capture), "-o", str(out), "--fit"]) == 2
    assert "long_side=14 (--size): gives views too small to be scored" in capsys.readouterr().err
    monkeypatch.setattr(fit, "Settings", lambda: small)
    assert main(["render", str(capture), "-o", str(out), "--fit", "--frames", "2"]) == 0
    told = capsys.readouterr().out
    assert "fitting 7 photos, 2 held out" in told and "mean of 2 held-out photos: PSNR" in told
    assert {path.name for path in tmp_path.glob("fit*")} == {"fit.mp4", "fit_sheet.jpg", "fit_held_out.png"}
