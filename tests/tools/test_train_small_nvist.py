"""The training of the small NViST, from scenes to a file that the library reads."""

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import train_small_nvist

from visionkit.errors import VisionKitError
from visionkit.nvs.cameras import pixel_rays
from visionkit.nvs.weights import load_small

SCRIPT = Path(train_small_nvist.__file__)


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "pool"
    options = ("--seconds", 1, "--scenes", 3, "--test-scenes", 1, "--views", 4, "--workers", 1)
    done = run("scenes", "--pool", folder, *options)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return folder


def test_a_pool_holds_what_its_cameras_see(pool):
    arrays = {name: np.load(pool / f"{name}.npy") for name in ("images", "c2w", "focal", "near_far", "depths")}
    scenes = len(arrays["images"])
    assert arrays["images"].shape == (scenes, 4, 3, 160, 90) and arrays["c2w"].shape == (scenes, 4, 3, 4)
    depths = arrays["depths"].astype(np.float32)
    assert depths.shape == (scenes, 4, 160, 90)
    distance = np.linalg.norm(arrays["c2w"][..., 3], axis=-1).mean(axis=1)  # from the middle of the unit cube
    assert (np.abs(np.log(np.median(depths, axis=(1, 2, 3)) / distance)) < np.log(2.2)).all()  # in the same scale


def test_scenes_are_rendered_on_the_device_that_is_asked_for(monkeypatch):
    jobs = []
    monkeypatch.setattr("synthesize_views.write_scene", lambda job: jobs.append(job) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_small_nvist._scene(("row_boxes_round_few", 0, None, "cuda:1"))
    assert jobs[0][-1] == "cuda:1"


def test_an_interruption_ends_it_in_one_line(tmp_path):
    command = [sys.executable, str(SCRIPT), "scenes", "--pool", str(tmp_path / "pool"), "--workers", "1"]
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a suite in the background ignores it
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **streams, start_new_session=True, preexec_fn=heeding) as work:
        assert "scenes" in work.stdout.readline()
        os.killpg(work.pid, signal.SIGINT)
        assert work.wait(timeout=60) == 130
        assert work.stderr.read() == "interrupted; what was unfinished is not kept\n"
    assert not list(tmp_path.iterdir())


class Stop:
    def __array__(self, *_, **__):
        raise KeyboardInterrupt


def test_a_pool_that_was_stopped_half_way_is_none(tmp_path):
    arrays = dict.fromkeys(train_small_nvist.ARRAYS, np.zeros(3))
    train_small_nvist.write_pool(tmp_path, arrays, 1)
    whole = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        train_small_nvist.write_pool(tmp_path, dict(arrays, depths=Stop()), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name for name in whole if name != "test_scenes.txt"]
    with pytest.raises(VisionKitError, match="no pool of scenes"):
        train_small_nvist.Pool(tmp_path, "cpu")


def test_training_writes_a_model_and_goes_on_from_one(pool, tmp_path):
    first, second = tmp_path / "new" / "first.safetensors", tmp_path / "second.safetensors"
    few = ("--size", "cpu", "--minutes", 0.01, "--batch", 1, "--views", 2, "--rays", 8, "--device", "cpu")
    for out, more in ((first, ("--depths-alone",)), (second, ("--init", first))):
        done = run("train", "--pool", pool, "--out", out, *few, *more)
        assert done.returncode == 0, done.stderr
        assert "of unseen layouts" in done.stdout
    model, scale = load_small(second)
    assert 0 < scale["near_far"][0] < scale["distance"] < scale["near_far"][1]
    assert all(bool(each.isfinite().all()) for each in model.state_dict().values())
    before = load_small(first)[0].encoder.patch_embed.proj.weight
    assert (
        0 < float((model.encoder.patch_embed.proj.weight - before).detach().abs().max()) < 0.1
    )  # it went on from there


def test_every_gpu_trains_the_large_model():
    assert [train_small_nvist.kind_of(device) for device in ("cpu", "cuda", "cuda:1")] == ["cpu", "gpu", "gpu"]


def test_without_a_pool_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    arguments = ["train", "--pool", str(tmp_path / "none"), "--out", str(tmp_path / "x.safetensors")]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    assert train_small_nvist.main() == 2
    error = capsys.readouterr().err
    assert "make one: scenes --pool" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "command, option, value, words",
    [
        ("scenes", "--scenes", "0", "--scenes 0: expected 1 or more"),
        ("scenes", "--test-scenes", "0", "--test-scenes 0: expected 1 or more"),
        ("scenes", "--views", "2", "--views 2: expected 3 or more"),
        ("scenes", "--workers", "0", "--workers 0: expected 1 or more"),
        ("scenes", "--seconds", "-1", "--seconds -1.0: expected 0.001 or more"),
        ("scenes", "--device", "nowhere", "device='nowhere': is not available"),
        ("scenes", "--pool", "/proc/none/pool", "give another --pool"),
        ("train", "--batch", "0", "--batch 0: expected 1 or more"),
        ("train", "--rays", "0", "--rays 0: expected 1 or more"),
        ("train", "--minutes", "0", "--minutes 0.0: expected 0.001 or more"),
        ("train", "--lr", "nan", "--lr nan: expected 0 or more"),
        ("train", "--device", "nowhere", "device='nowhere': is not available"),
        ("train", "--out", "/proc/none/s.safetensors", "give another --out"),
        ("train", "--out", ".", "is a folder"),
    ],
)
def test_wrong_options_are_told_in_one_line_before_the_work(
    monkeypatch, capsys, tmp_path, command, option, value, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stand_in.start_pool", lambda *_: pytest.fail("the work began"))
    monkeypatch.setattr(train_small_nvist, "Pool", lambda *_: pytest.fail("the work began"))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), command, "--pool", "pool", option, value])
    assert train_small_nvist.main() == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_mirrored_scene_is_the_same_scene_in_a_mirror():
    """A point seen at a pixel is, mirrored, seen at the mirrored pixel."""
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(2, 3, 3, 3)).Q
    batch = dict(
        image=torch.rand(2, 3, 3, 6, 4),
        depth=torch.rand(2, 3, 6, 4),
        c2w=torch.cat([axes * torch.linalg.det(axes)[..., None, None], torch.randn(2, 3, 3, 1)], dim=-1),
        focal=torch.full((2, 3, 2), 5.0),
    )
    mirror = train_small_nvist.mirrored(batch)
    for own, other in zip(*(pixel_rays(each["c2w"], each["focal"], (6, 4)) for each in (batch, mirror))):
        assert torch.allclose(other.flip(3), own * torch.tensor([-1.0, 1, 1]), atol=1e-6)
    assert torch.equal(mirror["image"].flip(-1), batch["image"])
    assert torch.equal(mirror["depth"].flip(-1), batch["depth"])
