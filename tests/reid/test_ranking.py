"""The blocked evaluation against a loop over queries that reads like the protocol."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reid.ranking_sets import random_set

from visionkit.errors import VisionKitError
from visionkit.reid.ranking import evaluate, evaluate_distances, mean_result


def plain_loop(distances, query_pids, query_camids, gallery_pids, gallery_camids, ap="finite_sum"):
    """One query at a time: sort, drop junk, walk down the list."""
    results = []
    for i, row in enumerate(distances):
        order = np.argsort(row, kind="stable")
        same_camera = gallery_camids[order] == query_camids[i]
        junk = (gallery_pids[order] == -1) | ((gallery_pids[order] == query_pids[i]) & same_camera)
        hits = (gallery_pids[order] == query_pids[i])[~junk]
        ranks = np.flatnonzero(hits) + 1
        if len(ranks) == 0:
            continue
        precision = 0.0
        for number, rank in enumerate(ranks, 1):
            new = number / rank
            old = 1.0 if rank == 1 else (number - 1) / (rank - 1)
            precision += new if ap == "finite_sum" else (new + old) / 2
        results.append((precision / len(ranks), ranks[0], len(ranks) / ranks[-1]))
    return results


@st.composite
def small_sets(draw):
    """Distances with many ties, identities -1 and 0 among them, down to a single camera."""
    queries, gallery = draw(st.integers(1, 7)), draw(st.integers(1, 20))
    pids, cameras = st.integers(-1, draw(st.integers(0, 4))), st.integers(0, draw(st.integers(0, 3)))
    levels = draw(st.integers(1, 30))

    def column(values, length):
        return np.array(draw(st.lists(values, min_size=length, max_size=length)))

    distances = column(st.integers(0, levels), queries * gallery).reshape(queries, gallery).astype(np.float32)
    labels = [column(pids, queries), column(cameras, queries), column(pids, gallery), column(cameras, gallery)]
    return distances, labels


@settings(max_examples=120, deadline=None)
@given(small_sets(), st.sampled_from(["finite_sum", "trapezoid"]), st.integers(1, 8))
@pytest.mark.filterwarnings("ignore:.*no match")
def test_equals_the_loop(sets, ap, rows):
    distances, labels = sets
    expected = plain_loop(distances, *labels, ap)
    if not expected:
        with pytest.raises(VisionKitError, match="no (query has a match|images to rank)"):
            evaluate_distances(distances, *labels, ap=ap)
        return
    precision, first, inverse = np.array(expected).T
    with mock.patch("visionkit.reid.ranking.block_rows", lambda width: rows):
        result = evaluate_distances(distances, *labels, ap=ap, topk=(1, 2, 3))
    assert result.num_valid_queries == len(expected)
    assert list(result.first_rank[result.first_rank > 0]) == list(first)
    np.testing.assert_allclose(result.average_precision[result.first_rank > 0], precision, rtol=1e-14)
    assert result.mAP == pytest.approx(precision.mean(), rel=1e-13)
    assert result.mINP == pytest.approx(inverse.mean(), rel=1e-13)
    assert result.cmc == {k: (first <= k).mean() for k in (1, 2, 3)}


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float16, torch.bfloat16, torch.int32])
def test_distances_of_any_kind_of_number(kind):
    query, gallery, *labels = random_set()
    distances = np.random.RandomState(0).randint(0, 64, (len(query), len(gallery)))  # of hashes: bits that differ
    given = torch.from_numpy(distances).to(kind) if isinstance(kind, torch.dtype) else distances.astype(kind)
    assert evaluate_distances(given, *labels).mAP == evaluate_distances(distances.astype(np.float64), *labels).mAP


@pytest.mark.parametrize("metric", ["euclidean", "cosine", lambda a, b: torch.cdist(a, b, p=1)])
def test_metrics_match_their_formulas(metric):
    qf, gf, *labels = random_set()
    a, b = torch.from_numpy(qf).double(), torch.from_numpy(gf).double()
    if metric == "cosine":
        distances = 1 - torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T
    else:
        distances = torch.cdist(a, b) if metric == "euclidean" else metric(a, b)
    expected = evaluate_distances(distances, *labels)
    result = evaluate(qf, gf, *labels, metric=metric)
    assert result.mAP == pytest.approx(expected.mAP, rel=1e-6)
    assert evaluate(a, b, *labels, metric=metric).mAP == pytest.approx(expected.mAP, rel=1e-12)


def test_blocks_and_memory_maps_change_nothing(tmp_path, monkeypatch):
    qf, gf, *labels = random_set()
    mapped = np.lib.format.open_memmap(tmp_path / "g.npy", "w+", np.float32, gf.shape)
    mapped[:] = gf
    whole = evaluate(qf, gf, *labels)
    monkeypatch.setattr("visionkit.reid.ranking.block_rows", lambda width: 16)
    blocked = evaluate(torch.from_numpy(qf), mapped, *labels)
    assert blocked.mAP == whole.mAP and blocked.cmc == whole.cmc


def test_cameras_and_their_absence():
    qf, gf, qp, qc, gp, gc = random_set()
    result = evaluate(qf, gf, qp, qc, gp, gc, per_camera=True)
    assert sorted(result.per_camera) == sorted(set(qc))
    weights = [scores["num_valid_queries"] for scores in result.per_camera.values()]
    assert np.average([s["mAP"] for s in result.per_camera.values()], weights=weights) == pytest.approx(result.mAP)
    without = evaluate(qf, gf, qp, None, gp, None)
    apart = evaluate(qf, gf, qp, qc * 0 + 9, gp, gc)  # cameras that never agree make no junk either
    assert without.mAP == apart.mAP
    assert mean_result([result, without]).mAP == pytest.approx((result.mAP + without.mAP) / 2)


def test_skipped_queries_are_reported():
    qf, gf, qp, qc, gp, gc = random_set()
    qp[3] = 99
    with pytest.warns(UserWarning, match="1 of 60 queries"):
        result = evaluate(qf, gf, qp, qc, gp, gc)
    assert result.num_valid_queries == 59 and np.isnan(result.average_precision[3])
    with pytest.warns(UserWarning, match="1 of 60 queries have no match and are skipped"):
        evaluate(qf, gf, qp, None, gp, None)


def test_bad_input_ends_in_one_line():
    qf, gf, qp, qc, gp, gc = random_set()
    cases = {
        "gallery features: no images": (qf, gf[:0], qp, qc, gp[:0], gc[:0]),
        "query features: no images": (qf[:0], gf, qp[:0], qc[:0], gp, gc),
        "gallery: no images": (qf, gf, qp, qc, gp * 0 - 1, gc),
        "under another camera": (qf, gf, qp, qc * 0, gp, gc * 0),
        "of its identity; check identities of query and gallery": (qf, gf, qp * 0 + 999, None, gp, None),
        "same model": (qf, gf[:, :4], qp, qc, gp, gc),
        "not finite": (qf * np.nan, gf, qp, qc, gp, gc),
        "gallery_pids: expected 300": (qf, gf, qp, qc, gp[1:], gc),
        "give both": (qf, gf, qp, None, gp, gc),
    }
    for message, arguments in cases.items():
        with pytest.raises(VisionKitError, match=message):
            evaluate(*arguments)
    for option in (dict(ap="official"), dict(metric="manhattan"), dict(rerank={}, metric="cosine")):
        with pytest.raises(VisionKitError):
            evaluate(qf, gf, qp, qc, gp, gc, **option)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rerank", [None, dict(k1=10)])
def test_gpu_equals_cpu(rerank):
    data = random_set()
    cpu, gpu = (evaluate(*data, rerank=rerank, device=device) for device in ("cpu", "cuda"))
    assert gpu.mAP == pytest.approx(cpu.mAP, abs=1e-5) and gpu.mINP == pytest.approx(cpu.mINP, abs=1e-5)
