"""``tools/benchmark.py attention`` at the smallest sizes."""

import json
import math
import os

import benchmark
import pytest
import torch
from benchmarks import attention
from benchmarks.attention import exponent, parse_lengths


def test_rows_table_and_plots(tmp_path, capsys):
    out = tmp_path / "rows.json"
    command = ["attention", "--ops", "softmax,aaren", "--masks", "full,causal", "--lengths", "64,128", "--dim", "8"]
    assert benchmark.main([*command, "--json", str(out), "--plots", str(tmp_path / "plots")]) == 0
    about, *rows = [row for row in json.loads(out.read_text()) if row["device"] == "cpu"]
    assert about["job"] == "about" and "float32" in about["note"]
    rows = {(row["op"], row["mask"], row.get("tokens")): row for row in rows}
    assert rows["aaren", "full", None]["note"] == "not supported"
    exact, other = rows["softmax", "causal", 128], rows["aaren", "causal", 128]
    assert exact["error"] < 1e-5 < other["error"]
    assert exact["peak_bytes"] >= 0 and other["reference_seconds"] == exact["seconds"] > 0
    assert {file.name for file in (tmp_path / "plots").iterdir()} == {"time.png", "memory.png"}
    assert "aaren causal 128" in capsys.readouterr().out


def test_wrong_options_are_told(capsys):
    assert benchmark.main(["attention", "--masks", "fool"]) == 2
    assert benchmark.main(["attention", "--lengths", "a..b"]) == 2
    assert benchmark.main(["attention", "--ops", "softmux"]) == 2
    if not torch.cuda.is_available():
        assert benchmark.main(["attention", "--device", "cuda"]) == 2
    assert "did you mean 'softmax'" in capsys.readouterr().err


def test_a_spent_budget_leaves_lengths_out(tmp_path):
    out = tmp_path / "rows.json"
    command = ["attention", "--ops", "softmax,diag", "--lengths", "64", "--masks", "full", "--device", "cpu"]
    assert benchmark.main([*command, "--budget", "0", "--json", str(out)]) == 0
    assert [row["note"] for row in json.loads(out.read_text())[1:]] == ["left out: the budget is spent"] * 2


def test_a_process_that_is_ended_costs_its_own_rows_alone(tmp_path, monkeypatch):
    sweeps = attention.sweeps
    monkeypatch.setattr(attention, "sweeps", lambda name, *more: os._exit(9) if name == "diag" else sweeps(name, *more))
    out = tmp_path / "rows.json"
    command = ["attention", "--ops", "diag,aaren", "--lengths", "64", "--masks", "causal", "--device", "cpu"]
    assert benchmark.main([*command, "--json", str(out), "--plots", str(tmp_path)]) == 0
    _, ended, other = json.loads(out.read_text())
    assert ended["note"].startswith("failed") and other["seconds"] > 0


@pytest.mark.parametrize("lengths", ["512..256", "0..256", "-64,128", "64,"])
def test_lengths_that_are_none_are_told(lengths, capsys):
    """The first was told to be unsupported by all, the second was measured 64 times."""
    assert benchmark.main(["attention", f"--lengths={lengths}"]) == 2
    assert f"--lengths {lengths}: expected" in capsys.readouterr().err


def test_exponent():
    assert exponent([(n, 3 * n**1.5) for n in (1024, 4096, 8192, 16384)]) == pytest.approx(1.5)
    assert exponent([(4096, 1.0), (8192, 2.0), (131072, 1e9)]) is None
    assert parse_lengths("256..1024") == [256, 512, 1024]
    assert math.prod(parse_lengths("3,2")) == 6
