import sys

import numpy as np
import pytest

from visionkit.errors import VisionKitError
from visionkit.registry import CLUSTERERS
from visionkit.reid.clustering import JaccardDBSCANLabels, KMeansLabels, cluster_means, cluster_statistics


def blobs(clusters=5, size=20, dim=6, noise=0.05, seed=0):
    r = np.random.RandomState(seed)
    truth = np.repeat(np.arange(clusters), size)
    return (r.standard_normal((clusters, dim))[truth] + noise * r.standard_normal((clusters * size, dim))).astype(
        np.float32
    ), truth


@pytest.mark.parametrize("algorithm", ["minibatch", "full", "faiss"])
def test_kmeans_finds_the_blobs_and_repeats(algorithm):
    if algorithm == "faiss":
        pytest.importorskip("faiss")
    features, truth = blobs()
    kmeans = CLUSTERERS.build(dict(type="visionkit.KMeansLabels", num_clusters=5, algorithm=algorithm))
    labels, centroids = kmeans.fit(features, seed=3)
    assert labels.dtype == np.int64 and centroids.shape == (5, 6)
    assert cluster_statistics(labels, 5, truth)["NMI"] > 0.85
    again = kmeans.fit(features, seed=3)
    assert (again.labels == labels).all() and (again.centroids == centroids).all()


def test_thousands_of_clusters_are_started_once():
    assert [KMeansLabels(k).n_init for k in (999, 1000)] == [3, 1] and KMeansLabels(2500, n_init=3).n_init == 3


def test_a_start_from_fewer_images_than_clusters_looks_at_three_times_as_many():
    features = blobs(clusters=30, size=10, noise=1.0)[0]
    few, same = (KMeansLabels(20, init_size=size).fit(features, seed=0) for size in (10, 60))
    assert (few.labels == same.labels).all()


def test_fewer_images_than_clusters():
    with pytest.raises(VisionKitError, match="100 images cannot make num_clusters=101"):
        KMeansLabels(101).fit(blobs()[0], seed=0)


def test_bad_options_and_features():
    with pytest.raises(VisionKitError, match="'median'"):
        KMeansLabels(3, algorithm="median")
    features = blobs()[0]
    features[4, 2] = np.nan
    with pytest.raises(VisionKitError, match="NaN"):
        KMeansLabels(3).fit(features, seed=0)
    with pytest.raises(VisionKitError, match="shape"):
        KMeansLabels(3).fit(features[0], seed=0)


@pytest.mark.parametrize(
    "options, told",
    [
        (dict(num_clusters=0), "num_clusters=0"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(max_iter=0), "max_iter=0"),
        (dict(n_init=-1), "n_init=-1"),
        (dict(init_size="x"), "init_size='x'"),
        (dict(reassignment_ratio="x"), "reassignment_ratio='x'"),
        (dict(max_no_improvement=-3), "max_no_improvement=-3"),
    ],
)
def test_numbers_that_k_means_cannot_work_with(options, told):
    with pytest.raises(VisionKitError, match=f"KMeansLabels: {told}; expected a"):
        KMeansLabels(**dict(dict(num_clusters=3), **options))


def test_k_means_takes_the_least_numbers_that_are_let_through():
    least = dict(max_iter=1, batch_size=1, init_size=1, n_init=1, reassignment_ratio=0)
    for without in (0, None):
        assert len(KMeansLabels(2, max_no_improvement=without, **least).fit(blobs()[0], seed=0).centroids) == 2


@pytest.mark.parametrize("options", [dict(min_samples=0), dict(eps="x"), dict(eps=0)])
def test_numbers_that_dbscan_cannot_work_with(options):
    ((option, value),) = options.items()
    with pytest.raises(VisionKitError, match=f"JaccardDBSCANLabels: {option}={value!r}; expected a"):
        JaccardDBSCANLabels(**options)


def test_faiss_is_missed_before_anything_is_clustered(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(VisionKitError, match="faiss: is not installed"):
        KMeansLabels(3, algorithm="faiss")


def test_means_and_statistics():
    features = np.array([[0, 0], [2, 0], [5, 5], [9, 9]], np.float32)
    labels = np.array([0, 0, 2, -1])
    assert cluster_means(features, labels).tolist() == [[1, 0], [0, 0], [5, 5]]
    statistics = cluster_statistics(labels)
    assert (statistics["clusters"], statistics["empty"], statistics["noise"], statistics["size_max"]) == (3, 1, 1, 2)
    assert cluster_statistics(np.array([-1, -1]))["size_min"] == 0
