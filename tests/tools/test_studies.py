"""What is wrong with a study's input is told as by the commands: in one line, with exit status 2."""

import importlib
import json
import os

import attention_page
import compare_attention
import pytest
import shapes
import study
import torch

TRAINED = ["--seconds", "1", "--json", "/proc/none/x.json"]
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
        ("compare_attention", ["--seconds", "-1", "--json", "x.json"], "--seconds=-1.0: expected a number above 0"),
        ("calibrate_sinks", ["--teacher", "/proc/none/x"], "give another --teacher"),
        ("calibrate_sinks", ["--teacher", __file__], "test_studies.py: "),
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


def test_a_teacher_of_another_kind(tmp_path, capsys):
    shapes.save_model(torch.nn.Linear(2, 2), tmp_path / "other.safetensors")
    with pytest.raises(SystemExit, match="2"):
        study.run_study(importlib.import_module("calibrate_sinks"), ["--teacher", str(tmp_path / "other.safetensors")])
    assert "other.safetensors: is of another architecture" in capsys.readouterr().err


@pytest.mark.parametrize(
    "other, words", [(["--seed", "7"], "was made with --seconds 1e-09 --seed 0"), (["--ops", "linear"], "no result")]
)
def test_results_of_other_settings_are_not_taken(other, words, tmp_path, capsys):
    """They were kept under the new settings."""
    out = tmp_path / "found.json"
    arguments = ["--ops", "linear", "--seconds", "1e-9", "--json", str(out)]
    with pytest.raises(SystemExit, match="0"):
        study.run_study(compare_attention, arguments)
    assert json.loads(out.read_text())["rows"][0]["op"] == "linear"
    if words == "no result":
        out.write_text('{"rows": []}')
    kept = out.read_text()
    with pytest.raises(SystemExit, match="2"):
        study.run_study(compare_attention, arguments + other)
    assert words in capsys.readouterr().err and out.read_text() == kept


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
