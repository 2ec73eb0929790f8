"""The results page of CORE-ReID."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "tools" / "results_core_reid.py"
spec = importlib.util.spec_from_file_location("results_core_reid", SCRIPT)
results_core_reid = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results_core_reid)


def test_a_machine_without_git(monkeypatch):
    """It failed when the first seed was trained."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert results_core_reid.commit() == "unknown"


def test_spread_and_gap():
    assert results_core_reid.spread([1.0]) == "1.0" and results_core_reid.spread([1.0, 3.0]) == "2.0 ± 1.4"
    scores = {"direct transfer": 20.0, "adapted": 65.0, "released": 50.0, "supervised": 80.0}
    rows = [dict(model=name, mAP=score) for name, score in scores.items()]
    assert results_core_reid.gap_closed(rows) == "the default closes 75 % of the gap, `released` 50 %"
