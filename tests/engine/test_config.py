"""The text of a Runner's config."""

import copy

from mmengine.config import Config

from visionkit.engine.config import RunConfig


def test_a_runs_text_is_python_that_gives_the_config_back():
    values = dict(model=dict(type="M", sizes=[1, 2], name=None), hooks=[dict(type="H", rate=1e-3)], seed=1)
    text = copy.deepcopy(RunConfig(values)).pretty_text
    assert Config.fromstring(text, ".py").to_dict() == values
