import sys
import urllib.request

import numpy as np
import pytest
import torch  # noqa: F401  before pycolmap, see captures/conftest.py

pytest.importorskip("pycolmap")
from nvs.captures.trees import write_colmap  # noqa: E402

from visionkit.errors import VisionKitError  # noqa: E402
from visionkit.nvs.captures import read_capture  # noqa: E402
from visionkit.nvs.viewer import point_colours, serve  # noqa: E402


@pytest.fixture
def scene(tmp_path):
    write_colmap(tmp_path / "scene")
    return read_capture(tmp_path / "scene")


def test_the_page_is_served(scene):
    pytest.importorskip("viser")
    server = serve(scene, port=8190)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.get_port()}", timeout=20) as answer:
            assert answer.status == 200 and b"<html" in answer.read().lower()
    finally:
        server.stop()


def test_points_take_the_colour_of_their_photograph(scene):
    images = [np.full((20, 30, 3), 10 * row, np.uint8) for row in range(len(scene))]
    colours = point_colours(scene, images)
    last = np.zeros(len(scene.points), int)
    for row, seen in enumerate(scene.visible):
        last[seen] = row
    matched = np.unique(np.concatenate(scene.visible))
    assert len(matched) and (colours[matched, 0] == 10 * last[matched]).mean() > 0.9


def test_without_viser(scene, monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(VisionKitError, match=r"visionkit\[viewer\]"):
        serve(scene)
