import numpy as np
import pytest
import torch
from reid.ranking_sets import random_set

from visionkit.errors import VisionKitError
from visionkit.registry import METRICS
from visionkit.reid.ranking import evaluate


def batches(qf, gf, qp, qc, gp, gc, size):
    role = np.repeat([0, 1], [len(qf), len(gf)])
    index = np.concatenate([np.arange(len(qf)), np.arange(len(gf))])
    features, pid, camid = np.concatenate([qf, gf]), np.concatenate([qp, gp]), np.concatenate([qc, gc])
    for start in range(0, len(role), size):
        at = slice(start, start + size)
        labels = dict(role=role[at], index=index[at], pid=pid[at], camid=camid[at])
        yield {key: torch.from_numpy(value) for key, value in labels.items()}, torch.from_numpy(features[at])


def test_scores_in_percent_whatever_the_order():
    data = random_set()
    expected = evaluate(*data)
    metric = METRICS.build(dict(type="visionkit.ReIDMetric", per_camera=True))
    parts = list(batches(*data, size=37))
    for batch, features in [*parts[::-1], parts[0]]:  # out of order, and one batch twice
        metric.process(batch, list(features))
    scores = metric.evaluate(size=len(parts))
    assert scores["mAP"] == pytest.approx(100 * expected.mAP, rel=1e-12)
    assert scores["rank-1"] == 100 * expected.cmc[1] and scores["mINP"] == pytest.approx(100 * expected.mINP)
    assert {"rank-5", "rank-10", "camera1_mAP", "camera1_rank-1"} <= scores.keys()
    assert "camera0_mAP" not in scores  # file names count cameras from 1
    assert metric.results == []


def test_without_cameras_and_with_a_prefix():
    data = random_set()
    metric = METRICS.build(dict(type="visionkit.ReIDMetric", use_cameras=False, prefix="target"))
    for batch, features in batches(*data, size=100):
        metric.process(batch, features)
    qf, gf, qp, _, gp, _ = data
    assert metric.evaluate(0)["target/mAP"] == pytest.approx(100 * evaluate(qf, gf, qp, None, gp, None).mAP)


def test_trials_are_averaged():
    data = random_set()
    qf, gf, qp, qc, gp, gc = data
    features, pids = np.concatenate([qf, gf]), np.concatenate([qp, gp])
    trials = np.random.RandomState(1).randint(0, 2, (3, len(pids)))
    metric = METRICS.build(dict(type="visionkit.ReIDMetric"))
    metric.dataset_meta = dict(name="set", trials=trials)
    for batch, part in batches(*data, size=100):
        batch["index"] += len(qf) * batch["role"]  # a QueryGallery counts through both splits
        metric.process(batch, part)
    q, g = trials == 0, trials == 1
    expected = [evaluate(features[q[i]], features[g[i]], pids[q[i]], None, pids[g[i]], None).mAP for i in range(3)]
    assert metric.evaluate(0)["mAP"] == pytest.approx(100 * np.mean(expected))


def test_rerank_scores_stand_beside_the_plain_ones():
    metric = METRICS.build(dict(type="visionkit.ReIDMetric", rerank=dict(k1=10)))
    data = random_set()
    for batch, features in batches(*data, size=100):
        metric.process(batch, features)
    scores = metric.evaluate(0)
    assert scores["rerank_mAP"] == pytest.approx(100 * evaluate(*data, rerank=dict(k1=10)).mAP)
    assert scores["mAP"] == pytest.approx(100 * evaluate(*data).mAP)


@pytest.mark.parametrize("rerank, expected", [(None, None), (False, None), (True, {}), ({}, {})])
def test_no_options_are_the_published_ones(rerank, expected):
    assert METRICS.build(dict(type="visionkit.ReIDMetric", rerank=rerank)).rerank == expected


@pytest.mark.parametrize("rerank", [None, True])
def test_options_are_tried_without_a_gpu(rerank, monkeypatch):
    """Which this machine has not: asking it for memory would be an error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    METRICS.build(dict(type="visionkit.ReIDMetric", rerank=rerank))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(topk=[0]), "ReIDMetric: topk=0; expected a whole number of at least 1"),
        (dict(topk=[1, 1.5]), "topk=1.5"),
        (dict(rerank=dict(k1=2.5)), "rerank: k1=2.5; expected a whole number of at least 1"),
        (dict(rerank=dict(k2=float("nan"))), "rerank: k2=nan"),
    ],
)
def test_ranks_and_neighbours_are_whole_numbers(options, message):
    with pytest.raises(VisionKitError, match=message):
        METRICS.build(dict(type="visionkit.ReIDMetric", **options))


@pytest.mark.parametrize("option", ["device", "gallery", "k3"])
def test_an_option_that_reranking_does_not_take(option):
    with pytest.raises(VisionKitError, match=f"rerank: unknown key '{option}'") as caught:
        METRICS.build(dict(type="visionkit.ReIDMetric", rerank={option: "cpu"}))
    assert "distributed" not in str(caught.value)  # is not for a config to say


def test_nothing_to_evaluate():
    with pytest.raises(VisionKitError, match="no image"):
        METRICS.build(dict(type="visionkit.ReIDMetric")).evaluate(0)
