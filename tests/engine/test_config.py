"""The text of a Runner's config, and the names in one."""

import copy

import pytest
from mmengine.config import Config

from visionkit.engine.config import RunConfig, check_types, load_config
from visionkit.errors import VisionKitError


def test_a_runs_text_is_python_that_gives_the_config_back():
    values = dict(model=dict(type="M", sizes=[1, 2], name=None), hooks=[dict(type="H", rate=1e-3)], seed=1)
    text = copy.deepcopy(RunConfig(values)).pretty_text
    assert Config.fromstring(text, ".py").to_dict() == values


def test_names_without_our_scope_are_looked_up_too():
    check_types(dict(a=[dict(type="Adam", lr=1), dict(type="mmengine.EMAHook"), dict(type="torch.nn.Linear")]))
    for name in ("Adamm", "visonkit.ResNet", "ResNet", "visionkit.Adam"):
        with pytest.raises(VisionKitError, match=r"a\[0\]: nothing is called.*did you mean"):
            check_types(dict(a=[dict(type=name)]))


def test_a_config_may_import(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", "/somewhere")
    (tmp_path / "base.py").write_text("seed = 1\nsource = dict(type='Some')\n")
    (tmp_path / "mine.py").write_text("import os\n_base_ = ['base.py']\nsource = dict(root=os.environ['DATA'])\n")
    assert load_config(tmp_path / "mine.py").to_dict() == dict(seed=1, source=dict(type="Some", root="/somewhere"))


@pytest.mark.parametrize("name", ["mine.py", "further.py"])
def test_a_config_names_its_base_by_a_setting(tmp_path, name):
    (tmp_path / "base.py").write_text("seed = 1\n")
    (tmp_path / "mine.py").write_text(
        "from mmengine.config import read_base\nwith read_base():\n    from .base import *\n"
    )
    (tmp_path / "further.py").write_text("_base_ = 'mine.py'\n")
    with pytest.raises(VisionKitError, match=f"{name}: read_base.*_base_ ="):
        load_config(tmp_path / name)


def test_a_config_may_speak_of_other_ways(tmp_path):
    (tmp_path / "mine.py").write_text("# as read_base() in others\nseed = 1\n")
    assert load_config(tmp_path / "mine.py").to_dict() == dict(seed=1)


@pytest.mark.parametrize("value", ["no", "off", 0, 1, None])
def test_a_switch_is_true_or_false(value):
    """Text that says no was taken for yes."""
    source = dict(type="visionkit.Market1501", root="data", split="train")
    check_types(dict(source=dict(source, include_test=True), model=dict(type="visionkit.ResNet", ibn="a")))
    with pytest.raises(VisionKitError, match=rf"^source: include_test={value!r}; expected True or False$"):
        check_types(dict(source=dict(source, include_test=value)))
