"""The benchmark's own jobs, at a size at which they and their references take no time."""

import json

import benchmark
import numpy as np
import pytest
from benchmarks import reid

from visionkit.reid import rerank


def test_jobs_agree_with_their_references(tmp_path):
    stem = str(tmp_path / "set")
    reid.make(stem, (64, 300, 20), 16, 0)
    ours, theirs = reid.our_scores(stem), reid.loop_scores(stem, 64)
    np.testing.assert_allclose(ours.result, theirs.result, atol=1e-6)
    np.testing.assert_allclose(reid.our_rerank(stem).result, reid.dense_rerank(stem).result, atol=1e-5)
    assert 0 < reid.our_rerank_scores(stem).result <= 1
    assert ours.seconds > 0 and theirs.cpu_seconds > 0


def test_clusters_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(rerank, "self_neighbours", rerank.self_neighbours)  # the job replaces it to time it
    stem = str(tmp_path / "set")
    reid.make(stem, (300, 20), 16, 0)
    search, labels = reid.our_clusters(stem, None).result
    assert search > 0 and (labels == reid.dense_clusters(stem, 300).result).all() and labels.max() > 0


def test_fewer_starts_leave_no_more_than_more_of_them_by_much(tmp_path, monkeypatch):
    monkeypatch.setattr(reid, "MSMT_CLUSTERS", 20)
    stem = str(tmp_path / "set")
    reid.make(stem, (300, 20), 16, 0)
    one, three = (reid.our_kmeans(stem, starts).result for starts in (1, 3))
    assert 0 < three < 300 and one < 1.3 * three


@pytest.mark.parametrize("command", ["attention", "backbones", "reid", "render"])
def test_no_thread_is_one_line(command, capsys):
    assert benchmark.main([command, "--threads", "0"]) == 2
    assert capsys.readouterr().err == "error: --threads 0: expected 1 or more\n"


def test_table_and_file(tmp_path, monkeypatch, capsys):
    rows = [dict(job="a", seconds=1.5, peak_bytes=1 << 30, reference_seconds=None)]
    monkeypatch.setattr(reid, "run", lambda options: rows)
    assert benchmark.main(["reid", "--json", str(tmp_path / "out.json")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["a", "1.5", "1024", "MiB", "-"]
    assert json.loads((tmp_path / "out.json").read_text()) == rows and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(SystemExit):
        benchmark.main(["reid", "--jobs", "nothing"])
