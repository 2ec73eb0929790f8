"""The results page of CORE-ReID."""

import argparse
import importlib.util
import subprocess
from pathlib import Path

import pytest

from visionkit.errors import VisionKitError

SCRIPT = Path(__file__).parents[2] / "tools" / "results_core_reid.py"
spec = importlib.util.spec_from_file_location("results_core_reid", SCRIPT)
results_core_reid = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results_core_reid)


def test_a_machine_without_git(monkeypatch):
    """It failed when the first seed was trained."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert results_core_reid.commit() == "unknown"


def test_a_processor_without_a_name(monkeypatch, tmp_path):
    """As Linux tells of ARM's. It failed when the first seed was trained."""
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nCPU architecture: 8\n")
    monkeypatch.setattr(results_core_reid, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert results_core_reid.machine().startswith("aarch64, ")


def test_the_page_itself_is_no_change(monkeypatch, tmp_path):
    """It is written again after every model."""
    monkeypatch.chdir(tmp_path)
    assert results_core_reid.commit() == "unknown"
    (tmp_path / "docs" / "results").mkdir(parents=True)
    code, page = tmp_path / "code.py", tmp_path / "docs" / "results" / "page.md"
    code.touch(), page.touch()
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "All"]):
        subprocess.run(["git", *command], check=True)
    page.write_text("changed")
    assert not results_core_reid.commit().endswith("-dirty")
    code.write_text("changed")
    assert results_core_reid.commit().endswith("-dirty")


def test_spread_and_gap():
    assert results_core_reid.spread([1.0]) == "1.0" and results_core_reid.spread([1.0, 3.0]) == "2.0 ± 1.4"
    scores = {"direct transfer": 20.0, "adapted": 65.0, "released": 50.0, "supervised": 80.0}
    rows = [dict(model=name, mAP=score) for name, score in scores.items()]
    assert results_core_reid.gap_closed(rows) == "the default closes 75 % of the gap, `released` 50 %"


def test_the_page_tells_how_far_the_best_epoch_is_above_the_last():
    rows = [dict(model="adapted", seed=1, checkpoint=which, mAP=20.0) for which in ("last", "best")]
    assert results_core_reid.best_epoch(rows) == "here it is the last epoch in every row"
    rows[1]["mAP"] = 21.25
    assert results_core_reid.best_epoch(rows) == "here it is up to 1.2 mAP higher; the JSON file has both"


def test_a_page_that_cannot_be_written_is_told_before_the_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(VisionKitError, match="--page"):
        results_core_reid.run(argparse.Namespace(page=tmp_path / "file" / "page.md"))
