"""A wrong input of any script is told as by the commands: in one line, with exit status 2."""

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("benchmark", ["reid", "--threads", "x"], "invalid int value: 'x'; see"),
        ("check_wheel", ["none.whl"], "none.whl: expected a wheel"),
        ("check_wheel", [], "required: wheel; see"),
        ("results_core_reid", ["--seeds", "x"], "invalid int value: 'x'; see"),
        ("results_nvist", [], "required: --data; see"),
        ("run_openmmlab", ["--size", "x"], "invalid int value: 'x'; see"),
        ("train_small_nvist", ["paint"], "'paint'"),
    ],
)
def test_a_wrong_input_is_one_line(name, arguments, words, monkeypatch, capsys):
    """The usage stood above it; a missing wheel was a traceback."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    with pytest.raises(SystemExit) as end:
        sys.exit(importlib.import_module(name).main())
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1 and words in told, told
