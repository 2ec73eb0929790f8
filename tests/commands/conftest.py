import pytest

from .site import without_styles, write_site


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder with data and a config of two stages, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    return without_styles(write_site(tmp_path))
