"""From photographs to a capture."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from visionkit.cli import main
from visionkit.errors import VisionKitError
from visionkit.nvs.cameras import Camera, look_at
from visionkit.nvs.captures import focal_from_exif, read_capture

pytest.importorskip("pycolmap")
from visionkit.nvs.prepare import _copy_photos, prepare_capture  # noqa: E402

SIZE, FOCAL = (320, 240), 250.0


def cameras(count=7):
    angles = np.radians(np.linspace(-25, 25, count))
    eyes = np.stack([2 * np.sin(angles), 0.2 * np.cos(5 * angles), -2 * np.cos(angles)], axis=1)
    return [Camera(look_at(eye, (0, 0, 0.3)), (FOCAL, FOCAL), SIZE) for eye in eyes]


def photograph(camera):
    """Two walls and a floor with a texture of blots, found by intersecting rays with their planes."""
    import cv2

    blots = np.random.default_rng(0).integers(0, 255, (3, 220, 220), dtype=np.uint8)
    blots = [cv2.resize(each, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC) for each in blots]
    origins, directions = (x.double().numpy() for x in camera.rays())
    image, nearest = np.zeros(len(origins), np.uint8), np.full(len(origins), np.inf)
    planes = (((1, 0, 1), 0.7), ((-1, 0, 1), 0.7), ((0, 1, 0), 0.8))
    for (normal, offset), texture in zip(planes, blots):
        distance = (offset - origins @ normal) / (directions @ normal + 1e-12)
        place = origins + distance[:, None] * directions
        u, v = place[:, 0], place[:, 1] + place[:, 2] * (normal[1] == 1)
        column, row = ((w * 110 + 330).clip(0, 659).astype(int) for w in (u, v))
        seen = (distance > 0) & (distance < nearest)
        image[seen], nearest[seen] = texture[row, column][seen], distance[seen]
    return Image.fromarray(image.reshape(camera.size)).convert("RGB")


def exif_of(camera, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x8769] = {0xA405: round(36 * camera.focal[0] / max(camera.size))}
    return exif


def test_cameras_are_found_up_to_scale(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    truth = cameras()
    for number, camera in enumerate(truth):
        picture = photograph(camera)
        if number == 2:  # lies on its side in the file, as phones write it
            picture.transpose(Image.Transpose.ROTATE_90).save(photos / "2.png", exif=exif_of(camera, 6))
        else:
            picture.save(photos / f"{number}.png", exif=exif_of(camera))
    (photos / "broken.jpg").write_bytes(b"\xff\xd8")
    shutil.copy(photos / "0.png", photos / "copy.png")
    assert main(["prepare_capture", str(photos), str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "left out: broken.jpg" in told and "left out: copy.png: is the same as 0.png" in told
    assert "usable: 7 of 8" in told  # a copy does not count
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cameras.png", "images", "sparse"]
    assert not list(tmp_path.glob(".*"))
    scene = read_capture(tmp_path / "out")
    assert len(scene) == 7 and scene.skipped == ()
    # Distances between cameras, all over that of the first and last: free of scale and frame.
    found, true = (
        np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (scene.centres, np.stack([c.centre for c in truth]))
    )
    assert found / found[0, -1] == pytest.approx(true / true[0, -1], abs=0.02)
    assert scene.camera(0).focal[0] == pytest.approx(FOCAL, rel=0.05)


def noise(folder, count=4):
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((160, 120)).save(folder / f"{number}.png")
    return folder


def test_photos_without_overlap_are_refused_and_leave_nothing(tmp_path, capsys):
    assert main(["prepare_capture", str(noise(tmp_path / "photos")), str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "4 photos do not fit together" in message and message.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_sigterm_ends_it_in_one_line_and_leaves_nothing(tmp_path):
    photos = noise(tmp_path / "photos")
    for number in range(4, 24):
        Image.effect_noise((800, 600), 90).save(photos / f"{number}.png")
    command = [sys.executable, "-m", "visionkit.cli", "prepare_capture", str(photos), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as work:
        assert any("finding features" in line for line in work.stdout)
        work.terminate()
        assert work.wait(timeout=120) == 143
        assert work.stderr.read() == "interrupted; what was unfinished is not kept\n"
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_copies_are_upright_scaled_and_without_twins(tmp_path):
    folder = noise(tmp_path / "photos")
    exif = exif_of(Camera(np.eye(3, 4), (100.0, 100.0), (160, 120)), 6)
    Image.new("RGB", (200, 100), "red").save(folder / "turned.jpg", exif=exif)
    (folder / "twin.png").write_bytes((folder / "1.png").read_bytes())
    Image.new("RGB", (100, 90), "blue").save(folder / "turned.png")  # another picture of the same name
    (tmp_path / "images").mkdir()
    lenses, _, twins = _copy_photos(sorted(folder.iterdir()), tmp_path / "images", 80, lambda line: None)
    assert dict(twins) == {"twin.png": "is the same as 1.png"}
    assert lenses["0.jpg"] == ((80, 60), None) and lenses["turned.png.jpg"] == ((80, 72), None)
    size, focal = lenses["turned.jpg"]
    assert size == (40, 80) and focal == pytest.approx(22 / 36)
    assert Image.open(tmp_path / "images" / "turned.jpg").size == (40, 80)
    assert focal_from_exif(tmp_path / "images" / "turned.jpg")[0] == pytest.approx(22 / 36)


def test_wrong_inputs(tmp_path, monkeypatch):
    folder = noise(tmp_path / "photos", 2)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(VisionKitError, match="the folder you are in"):
        prepare_capture(folder, ".")
    with pytest.raises(VisionKitError, match="no such file"):
        prepare_capture(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(VisionKitError, match="is no video.*folder"):
        prepare_capture(folder / "0.png", tmp_path / "out")
    with pytest.raises(VisionKitError, match="2 photos can be read"):
        prepare_capture(folder, tmp_path / "out")
    with pytest.raises(VisionKitError, match="exists already"):
        prepare_capture(folder, folder)
    for place in ("/proc/q", folder / "0.png" / "q"):
        with pytest.raises(VisionKitError, match=f"^{place}: its folder cannot be written to .*; give another OUT$"):
            prepare_capture(folder, place)
    for wrong in (dict(frames=1), dict(frames=10.0), dict(max_side=63)):
        with pytest.raises(VisionKitError, match="--(frames|max-side)=.*: expected a whole number of at least"):
            prepare_capture(folder, tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()
