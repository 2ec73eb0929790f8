"""A tree of three scenes to train on and one to test on, in twelve views each."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIZE = (40, 20)


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    sys.path.insert(0, str(ROOT / "datasets"))
    import synthesize_views

    out = tmp_path_factory.mktemp("nvist") / "views"
    synthesize_views.synthesize(out, synthesize_views.Settings(3, 1, 12, SIZE, seed=5))
    return out


@pytest.fixture
def copy(tree, tmp_path):
    for path in tree.glob("visionkit_*.npz"):
        path.unlink()
    return Path(shutil.copytree(tree, tmp_path / "views"))
