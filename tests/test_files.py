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


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    with beside(tmp_path / "a.safetensors") as temporary:
        save_file(dict(x=zeros(2)), temporary)
    (tmp_path / "usual").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.safetensors", "usual")}
    assert len(modes) == 1
