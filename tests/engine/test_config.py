"""The text of a Runner's config, and the names in one."""

import copy

import pytest
from mmengine.config import Config

from visionkit.engine.config import RunConfig, check_types
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
