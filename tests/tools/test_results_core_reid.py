"""The results page of CORE-ReID."""

import argparse

import pytest
import results_core_reid

from visionkit.errors import VisionKitError


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
