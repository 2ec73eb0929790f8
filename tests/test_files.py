import errno
import os
import stat

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from visionkit.errors import VisionKitError
from visionkit.files import beside, remove_leftovers, write_image


def test_a_file_is_whole_or_as_before(tmp_path):
    path = tmp_path / "a.txt"
    with beside(path) as temporary:
        temporary.write_text("first")
    with pytest.raises(ZeroDivisionError), beside(path) as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("name", ["a" * 251 + ".txt", "é" * 127, "\U0001f600" * 63], ids=["ascii", "accents", "faces"])
def test_a_name_may_be_as_long_as_names_can_be(tmp_path, name):
    with beside(tmp_path / name) as temporary:
        temporary.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "a.txt", tmp_path / "folder"):
        with (
            pytest.raises(VisionKitError, match=f"^{path}: cannot be written .*; check the disk"),
            beside(path) as file,
        ):
            file.write_text("")
    with pytest.raises(FileNotFoundError) as caught, beside(tmp_path / "a.txt"):
        (tmp_path / "another.txt").read_text()
    assert caught.value.filename == str(tmp_path / "another.txt")


def test_an_image_that_finds_no_room_is_told_and_not_cut_off(tmp_path, room_of_4096_bytes):
    """As where a disk fills up: the system writes what it can, and Pillow takes that for all."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))
    with pytest.raises(VisionKitError, match="a.jpg: cannot be written .File too large.; check the disk"):
        write_image(image, tmp_path / "a.jpg", format="JPEG")
    assert not list(tmp_path.iterdir())


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    with beside(tmp_path / "a.safetensors") as temporary:
        save_file(dict(x=np.zeros(2)), temporary)
    (tmp_path / "usual").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.safetensors", "usual")}
    assert len(modes) == 1


def test_two_processes_of_one_number_write_to_two_temporary_files(tmp_path, monkeypatch):
    """As containers have them that share a disk."""
    monkeypatch.setattr("os.getpid", lambda: 7)
    with beside(tmp_path / "a.txt") as first, beside(tmp_path / "a.txt") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")


def test_a_read_only_disk_is_told_of_the_file_that_was_asked_for(tmp_path, monkeypatch):
    def refuse(path, *arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    for name in ("open", "unlink"):  # unlink, too, whether there is such a file or not
        monkeypatch.setattr(f"pathlib.Path.{name}", refuse)
    with (
        pytest.raises(VisionKitError, match="a.txt: cannot be written .Read-only file system"),
        beside(tmp_path / "a.txt") as file,
    ):
        file.write_text("")


def test_what_a_killed_run_left_half_written_goes(tmp_path):
    with pytest.raises(KeyboardInterrupt), beside(tmp_path / "last.pth") as temporary:
        temporary.touch()
        left = temporary.rename(tmp_path / "aside")
        raise KeyboardInterrupt
    left.rename(temporary)
    (tmp_path / "notes.tmp").touch()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.tmp"]
