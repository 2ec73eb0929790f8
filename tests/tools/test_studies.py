"""What is wrong with a study's input is told as by the commands: in one line, with exit status 2."""

import importlib
import json
import os

import attention_page
import pytest
import shapes
import study
import torch

TRAINED = ["--seconds", "0", "--json", "/proc/none/x.json"]
MISSING = ["--benchmark", "none.json", "--accuracy", "none.json", "--page", "none.md"]


@pytest.fixture(autouse=True)
def threads_as_they_are(monkeypatch):
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("train_pairs", [], "required: --root; see"),
        ("train_pairs", ["--root", "none"], "Market1501: root none is no folder"),
        ("train_experts", ["--root", "none", *TRAINED], "/proc/none/x.json: its folder cannot be written"),
        ("train_reranker", ["--root", "none"], "root none is no folder"),
        ("compare_attention", TRAINED, "give another --json"),
        ("calibrate_sinks", ["--teacher", "/proc/none/x"], "give another --teacher"),
        ("tune_p_adapter", ["--teacher-seconds", "x"], "invalid float value: 'x'"),
        ("distill_lawcat", TRAINED[2:], "give another --json"),
        ("shapes_folder", ["--out", "/proc/none"], "/proc/none: "),
        ("shapes_folder", ["--out", "new", "--val", "0"], "--val 0: expected 1 or more"),
        ("attention_page", MISSING, "none.json: No such file"),
        ("run_all", ["--out", "/proc/none"], "/proc/none: "),
        ("run_all", ["--out", "new", "--processes", "0"], "--processes 0: expected 1 or more"),
    ],
)
def test_a_wrong_input_is_one_line(name, arguments, words, tmp_path, monkeypatch, capsys):
    """They were tracebacks, or stood under the usage; no process at all was waited for for ever."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        study.run_study(importlib.import_module(name), arguments)
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1 and words in told, told
    assert not os.listdir(tmp_path)


def test_a_page_without_a_place_for_the_table_is_left_as_it_is(tmp_path, capsys):
    (tmp_path / "page.md").write_text("A page.")
    (tmp_path / "rows.json").write_text('{"rows": []}')
    files = [
        "--benchmark",
        tmp_path / "rows.json",
        "--accuracy",
        tmp_path / "rows.json",
        "--page",
        tmp_path / "page.md",
    ]
    with pytest.raises(SystemExit, match="2"):
        study.run_study(attention_page, list(map(str, files)))
    assert "expected the lines <!-- table -->" in capsys.readouterr().err
    assert (tmp_path / "page.md").read_text() == "A page."


@pytest.mark.parametrize("seconds, steps", [(0, 0), (1e-9, 1)])
def test_training_ends_when_its_time_is_over(seconds, steps):
    """No time at all was divided by."""
    weight = torch.nn.Parameter(torch.ones(1))
    assert study.fit([weight], lambda: (weight**2).sum(), seconds) == steps
    assert (weight.item() < 1) == bool(steps)


def test_a_seed_repeats_and_rows_are_printed_and_kept(tmp_path, capsys):
    path = tmp_path / "new" / "found.json"
    result = dict(rows=[])
    for _ in range(2):
        torch.manual_seed(0)
        model = shapes.TinyViT()
        shapes.train(model, shapes.make_shapes(64, 0), 1e-9)
        study.keep(dict(weight=float(model.head.weight.detach().sum())), result, path)
    first, second = json.loads(path.read_text())["rows"]
    assert first == second and capsys.readouterr().out == f"{first}\n{second}\n"
