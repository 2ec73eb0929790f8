import os
import stat

import pytest
from safetensors.torch import save_file
from torch import zeros

from visionkit.files import beside


def test_a_file_is_whole_or_as_before(tmp_path):
    path = tmp_path / "a.txt"
    with beside(path) as temporary:
        temporary.write_text("first")
    with pytest.raises(ZeroDivisionError), beside(path) as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["a.txt"]


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "none" / "a.txt"
    with pytest.raises(OSError) as caught, beside(path) as temporary:
        temporary.write_text("")
    assert caught.value.filename == str(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught, beside(tmp_path / "folder") as temporary:
        temporary.write_text("")
    assert caught.value.filename == str(tmp_path / "folder")
    with pytest.raises(FileNotFoundError) as caught, beside(tmp_path / "a.txt"):
        (tmp_path / "another.txt").read_text()
    assert caught.value.filename == str(tmp_path / "another.txt")


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    with beside(tmp_path / "a.safetensors") as temporary:
        save_file(dict(x=zeros(2)), temporary)
    (tmp_path / "usual").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.safetensors", "usual")}
    assert len(modes) == 1
