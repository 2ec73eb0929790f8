import socket
import sys
import urllib.request

import numpy as np
import pytest
import torch  # noqa: F401  before pycolmap, see captures/conftest.py

pytest.importorskip("pycolmap")
from nvs.captures.trees import write_colmap  # noqa: E402

from visionkit.cli import main  # noqa: E402
from visionkit.errors import VisionKitError  # noqa: E402
from visionkit.nvs.captures import read_capture  # noqa: E402
from visionkit.nvs.viewer import LAST_PORT, free_port, point_colours, serve  # noqa: E402


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


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("--port", "99999", "expected 0 to 65535"),
        ("--port", "-1", "expected 0 to 65535"),
        ("--host", "192.0.2.1", "no address of this machine"),
        ("--host", "nowhere.invalid", "no address of this machine"),
        ("--host", "a..b", "no address of this machine"),
    ],
)
def test_addresses_that_nobody_can_listen_at(scene, option, value, words, capsys):
    pytest.importorskip("viser")
    assert main(["view", str(scene.paths[0].parent.parent), f"{option}={value}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {option} {value}: ") and words in error and error.count("\n") == 1


def test_a_port_that_is_taken_gives_the_next():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert port < free_port("127.0.0.1", port) < port + 100
    with socket.create_server(("127.0.0.1", LAST_PORT)):
        with pytest.raises(VisionKitError, match=f"--port {LAST_PORT}: is taken"):
            free_port("127.0.0.1", LAST_PORT)
    assert free_port("127.0.0.1", 0) == 0


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
