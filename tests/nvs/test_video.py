"""Videos in and out."""

import os
import subprocess
import sys

import numpy as np
import pytest

from visionkit.errors import VisionKitError
from visionkit.nvs.video import VideoWriter, sharp_frames

pytest.importorskip("av")


def texture(shift, blur=False):
    grey = np.random.default_rng(0).integers(0, 255, (60, 200), dtype=np.uint8)
    import cv2

    grey = cv2.resize(grey, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)[:, shift : shift + 160]
    grey = cv2.GaussianBlur(grey, (0, 0), 5) if blur else grey
    return np.repeat(grey[..., None], 3, axis=2)


def write(path, frames):
    with VideoWriter(path) as video:
        for frame in frames:
            video.add(frame)
    return path


def test_the_sharp_frame_of_each_stretch_is_taken_and_stills_are_dropped(tmp_path):
    moving = [texture(10 * (number // 3), blur=number % 3 != 1) for number in range(12)]
    path = write(tmp_path / "a.mp4", moving)
    frames = dict(sharp_frames(path, 4))
    assert list(frames) == [1, 4, 7, 10]
    assert np.abs(frames[4].astype(float) - texture(10)).mean() < 8
    still = write(tmp_path / "b.mp4", [texture(0)] * 12)
    assert len(list(sharp_frames(still, 4))) == 1


def test_a_colon_in_a_name_is_no_protocol(tmp_path, monkeypatch):
    """FFmpeg took "10:30.mp4" for what a protocol called 10 gives."""
    monkeypatch.chdir(tmp_path)
    assert len(dict(sharp_frames(write("10:30.mp4", [texture(10 * number) for number in range(4)]), 4))) == 4


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(VisionKitError, match="a.mp4: no frame"):
        list(sharp_frames(tmp_path / "a.mp4", 4))


def test_a_video_that_fails_half_way_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "a.mp4") as video:
        video.add(texture(0))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_finds_no_room_is_named_and_leaves_nothing(tmp_path, room_of_4096_bytes):
    with pytest.raises(VisionKitError, match=f"^{tmp_path / 'a.mp4'}: cannot be written .File too large.; check"):
        write(tmp_path / "a.mp4", [texture(number) for number in range(8)])
    assert not list(tmp_path.iterdir())


TWICE = """
import hashlib, sys
import numpy as np
from PIL import Image
from visionkit.nvs.video import VideoWriter

photo = np.asarray(Image.open("docs/images/photo.jpg").convert("RGB").resize((300, 160)))
with VideoWriter(sys.argv[1]) as video:
    for number in range(6):
        video.add(photo[:, number * 8 : number * 8 + 184])
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fills new memory as the GNU C library does")
def test_the_same_frames_make_the_same_file_whatever_the_memory_held(tmp_path):
    found = set()
    for filling in ("165", "85"):
        command, environment = [sys.executable, "-c", TWICE, str(tmp_path / "a.mp4")], dict(MALLOC_PERTURB_=filling)
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


def test_colours_and_odd_sizes_survive(tmp_path):
    frame = np.zeros((31, 45, 3), np.uint8)
    frame[:, :22] = (200, 40, 40)
    ((_, seen),) = sharp_frames(write(tmp_path / "a.mp4", [frame] * 3), 1)
    assert seen.shape == (30, 44, 3)
    assert np.abs(seen[15, 8].astype(int) - (200, 40, 40)).max() < 25 and seen[15, 35].max() < 25
