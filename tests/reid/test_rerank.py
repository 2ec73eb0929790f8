import numpy as np
import pytest
import torch
from reid import dense_rerank
from reid.ranking_sets import random_set

from visionkit.errors import VisionKitError
from visionkit.reid.clustering import JaccardDBSCANLabels
from visionkit.reid.ranking import evaluate, evaluate_distances
from visionkit.reid.rerank import jaccard_graph, rerank_distances


def features(queries=12, gallery=60, seed=0, copies=0):
    qf, gf, *_ = random_set(queries, gallery, identities=9, dim=6, seed=seed)
    gf[:copies] = gf[0]
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (qf, gf))


VARIANTS = [
    dict(),
    dict(k1=7, k2=1, lambda_value=0.0),
    dict(k1=5, k2=3, weights="softmax", count_self=True),
    dict(k1=12, count_self=True, lambda_value=1.0),
    dict(k1=100, k2=90),  # more neighbours than there are images
]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("copies", [0, 30])
def test_equals_the_dense_form(options, copies):
    query, gallery = features(copies=copies)
    expected = dense_rerank.rerank(query, gallery, **options)
    actual = rerank_distances(query, gallery, **options)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    mixed = rerank_distances(query.astype(np.float64), torch.from_numpy(gallery), **options)
    np.testing.assert_allclose(mixed, expected, atol=1e-5)


@pytest.mark.parametrize("options", [dict(k1=8, k2=3), dict(k1=6, k2=1, weights="softmax", count_self=True)])
def test_graph_equals_the_dense_distances(options):
    points = np.concatenate(features())
    V, _ = dense_rerank.memberships(dense_rerank.squared_distances(points, points), **options)
    expected = dense_rerank.jaccard(V, V)
    graph = jaccard_graph(points, **options)
    dense = np.ones(graph.shape)
    stored = np.repeat(np.arange(len(points)), np.diff(graph.indptr)), graph.indices
    dense[stored] = graph.data
    np.testing.assert_allclose(dense, expected, atol=1e-5)
    assert (np.diff(graph.data)[np.diff(stored[0]) == 0] >= 0).all()  # rows ascend
    near = jaccard_graph(points, max_distance=0.5, **options)
    assert near.data.max() <= 0.5 and near.nnz == (graph.data <= 0.5).sum()


def test_dbscan_equals_that_on_dense_distances():
    from sklearn.cluster import DBSCAN

    points = np.concatenate(features())
    V, _ = dense_rerank.memberships(dense_rerank.squared_distances(points, points), 8, 3)
    expected = DBSCAN(eps=0.6, min_samples=3, metric="precomputed").fit_predict(dense_rerank.jaccard(V, V).clip(0))
    labels, centroids = JaccardDBSCANLabels(0.6, 3, k1=8, k2=3).fit(points)
    assert (labels == expected).all() and 1 < labels.max() + 1 == len(centroids)
    np.testing.assert_allclose(centroids[0], points[labels == 0].mean(0), rtol=1e-5)


def test_evaluation_by_blocks_equals_that_of_the_matrix(monkeypatch):
    qf, gf, *labels = random_set()
    expected = evaluate_distances(rerank_distances(qf, gf, k1=10), *labels)
    monkeypatch.setattr("visionkit.reid.ranking.block_rows", lambda width: 16)
    result = evaluate(qf, gf, *labels, rerank=dict(k1=10))
    assert result.mAP == expected.mAP and result.cmc == expected.cmc
    assert result.mAP > evaluate(qf, gf, *labels).mAP  # what it is for


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(8))
def test_copies_of_one_image(seed, dtype):
    """Of such a model's features the products' rounding is all that distances are made of, below 0 now and then."""
    image = np.random.RandomState(seed).standard_normal((1, 16)).astype(dtype)
    distances = rerank_distances(image.repeat(3, 0), image.repeat(10, 0))
    assert distances.isfinite().all() and 0 <= distances.min() and distances.max() <= 1


def test_wrong_options():
    query, gallery = features()
    for options in (dict(k1=0), dict(k2=0), dict(lambda_value=1.5), dict(weights="linear"), dict(backend="annoy")):
        with pytest.raises(VisionKitError):
            rerank_distances(query, gallery, **options)
    with pytest.raises(VisionKitError, match="no images"):
        rerank_distances(query, gallery[:0])
    with pytest.raises(VisionKitError, match="eps"):
        JaccardDBSCANLabels(eps=0)


@pytest.mark.parametrize("options", [dict(k1=0), dict(weights="linear"), dict(backend="annoy")])
def test_a_clusterer_tells_a_wrong_option_when_it_is_built(options):
    with pytest.raises(VisionKitError):
        JaccardDBSCANLabels(**options)
