"""Pseudo-label generators: ``fit(features, seed)`` gives one cluster number for each image, and centroids."""

import logging
import warnings
from typing import NamedTuple

import numpy as np

from visionkit.checks import check_above, check_choice, check_counts, check_numbers, given
from visionkit.errors import VisionKitError
from visionkit.extras import require
from visionkit.registry import CLUSTERERS
from visionkit.reid.rerank import jaccard_graph

MANY_CLUSTERS = 1000

logger = logging.getLogger(__name__)


class Clusters(NamedTuple):
    """Labels (N,) int64, -1 for images that belong to no cluster, and one centroid (K, D) float32 a cluster."""

    labels: np.ndarray
    centroids: np.ndarray


@CLUSTERERS.register_module()
class KMeansLabels:
    """K-means with a fixed number of clusters, the released recipe's by default.

    Args:
        num_clusters: K; it stays K when clusters end up empty, so that a classifier keeps its size.
        algorithm: ``"minibatch"`` or ``"full"`` (scikit-learn), or ``"faiss"``.
        max_iter: passes over the images.
        batch_size: images a mini-batch.
        init_size: images that k-means++ looks at; the released code takes 1500 for the global view and 900 for the
            halves. Below K it becomes 3 K, as scikit-learn would do with a warning.
        max_no_improvement: mini-batches without progress before stopping; None never stops for that.
        reassignment_ratio: share of the largest count below which a mini-batch centre is moved elsewhere.
        n_init: starts of the mini-batch form, of which the best goes on. By default 3, as scikit-learn had when the
            code was released, and from 1000 clusters on 1, for there k-means++ takes most of the time.
    """

    def __init__(
        self,
        num_clusters: int,
        algorithm: str = "minibatch",
        max_iter: int = 100,
        batch_size: int = 300,
        init_size: int | None = 1500,
        max_no_improvement: int | None = 10,
        reassignment_ratio: float = 0.01,
        n_init: int | None = None,
    ) -> None:
        check_choice("KMeansLabels", ("minibatch", "full", "faiss"), algorithm=algorithm)
        counts = dict(num_clusters=num_clusters, max_iter=max_iter, batch_size=batch_size)
        check_counts("KMeansLabels", 1, **counts, **given(init_size=init_size, n_init=n_init))
        check_counts("KMeansLabels", 0, **given(max_no_improvement=max_no_improvement))
        check_numbers("KMeansLabels", reassignment_ratio=reassignment_ratio)
        if algorithm == "faiss":
            require("faiss", "faiss")  # told now, not after the source's training
        self.num_clusters, self.algorithm, self.max_iter = num_clusters, algorithm, max_iter
        self.batch_size, self.init_size = batch_size, init_size
        self.max_no_improvement, self.reassignment_ratio = max_no_improvement, reassignment_ratio
        self.n_init = n_init or (3 if num_clusters < MANY_CLUSTERS else 1)

    def fit(self, features: np.ndarray, seed: int) -> Clusters:
        """Cluster features (N, D) float32; the same seed gives the same clusters.

        Raises:
            VisionKitError: fewer images than clusters, or features that are not finite.
        """
        features = _checked(features)
        if len(features) < self.num_clusters:
            raise VisionKitError(
                f"KMeansLabels: {len(features)} images cannot make num_clusters={self.num_clusters} clusters; "
                "lower num_clusters or give more images"
            )
        if self.algorithm == "faiss":
            return self._fit_faiss(features, seed)
        return self._fit_sklearn(features, seed)

    def _fit_sklearn(self, features: np.ndarray, seed: int) -> Clusters:
        from sklearn.cluster import KMeans, MiniBatchKMeans
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits

        if self.algorithm == "full":
            model = KMeans(self.num_clusters, n_init=1, max_iter=self.max_iter, random_state=seed)
        else:
            init_size = self.init_size or 0
            if init_size < self.num_clusters:
                init_size = 3 * self.num_clusters
            model = MiniBatchKMeans(
                self.num_clusters,
                n_init=self.n_init,
                max_iter=self.max_iter,
                batch_size=self.batch_size,
                init_size=min(init_size, len(features)),
                max_no_improvement=self.max_no_improvement,
                reassignment_ratio=self.reassignment_ratio,
                random_state=seed,
            )
        # Threads add up partial sums in the order in which they finish: one thread repeats bit for bit.
        with threadpool_limits(1, user_api="openmp"), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features)
        return Clusters(model.labels_.astype(np.int64), model.cluster_centers_.astype(np.float32))

    def _fit_faiss(self, features: np.ndarray, seed: int) -> Clusters:
        faiss = require("faiss", "faiss")
        model = faiss.Kmeans(
            features.shape[1],
            self.num_clusters,
            niter=self.max_iter,
            seed=seed % (1 << 31),
            gpu=faiss.get_num_gpus() > 0,
            min_points_per_centroid=1,
            max_points_per_centroid=len(features),
        )
        model.train(features)
        _, labels = model.index.search(features, 1)
        return Clusters(labels[:, 0].astype(np.int64), model.centroids.astype(np.float32))


@CLUSTERERS.register_module()
class JaccardDBSCANLabels:
    """DBSCAN on the k-reciprocal Jaccard distance; images in no dense region get -1.

    Args:
        eps: Jaccard distance below which two images are neighbours.
        min_samples: neighbours, itself included, that make an image the core of a cluster.
        k1: neighbours that are looked at (20 in MMT, 30 in OpenUnReID).
        k2: neighbours over which memberships are averaged.
        weights: ``"exp"`` or ``"softmax"``, see :class:`visionkit.reid.rerank.KReciprocal`.
        count_self: count an image among its own k1 neighbours, see :class:`visionkit.reid.rerank.KReciprocal`.
        backend: library of the neighbour search, see :func:`visionkit.reid.knn.nearest_neighbours`.
    """

    def __init__(
        self,
        eps: float = 0.6,
        min_samples: int = 4,
        k1: int = 20,
        k2: int = 6,
        weights: str = "exp",
        count_self: bool = False,
        backend: str = "auto",
    ) -> None:
        check_counts("JaccardDBSCANLabels", 1, min_samples=min_samples)
        check_above("JaccardDBSCANLabels", 0, eps=eps)
        if eps >= 1:
            raise VisionKitError(f"JaccardDBSCANLabels: eps is a Jaccard distance between 0 and 1, got {eps}")
        self.eps, self.min_samples = eps, min_samples
        self.options = dict(k1=k1, k2=k2, weights=weights, count_self=count_self, backend=backend)
        # a wrong option is told at once, not after the source's training; on the CPU, for no process knows its GPU yet
        jaccard_graph(np.eye(2, dtype=np.float32), **self.options, device="cpu")

    def fit(self, features: np.ndarray, seed: int = 0) -> Clusters:
        """Cluster features (N, D) float32; centroids are the means of the clusters' features.

        Nothing here is random; the seed is taken for the common form.
        """
        from sklearn.cluster import DBSCAN

        features = _checked(features)
        graph = jaccard_graph(features, max_distance=self.eps, **self.options)
        labels = DBSCAN(eps=self.eps, min_samples=self.min_samples, metric="precomputed").fit_predict(graph)
        labels = labels.astype(np.int64)
        return Clusters(labels, cluster_means(features, labels))


def cluster_means(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean feature (K, D) float32 of each cluster 0..K-1; label -1 is left out."""
    num_clusters = int(labels.max(initial=-1)) + 1
    sums = np.zeros((num_clusters, features.shape[1]), np.float64)
    clustered = labels >= 0
    np.add.at(sums, labels[clustered], features[clustered])
    counts = np.bincount(labels[clustered], minlength=num_clusters)
    return (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)


def cluster_statistics(
    labels: np.ndarray, num_clusters: int | None = None, true_labels: np.ndarray | None = None
) -> dict[str, float]:
    """Numbers for the log: clusters, empty ones, images left out, sizes; agreement with ``true_labels`` if given.

    Args:
        labels: (N,) cluster of each image; -1 for one that is left out.
        num_clusters: number of clusters, empty ones included; by default up to the largest label.
        true_labels: (N,) identities.
    """
    sizes = np.bincount(labels[labels >= 0], minlength=num_clusters or 0)
    filled = sizes[sizes > 0] if sizes.any() else np.zeros(1)
    statistics = dict(
        clusters=len(sizes),
        empty=int((sizes == 0).sum()),
        noise=int((labels < 0).sum()),
        size_min=int(filled.min()),
        size_median=float(np.median(filled)),
        size_max=int(filled.max()),
    )
    if true_labels is not None:
        from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

        statistics["NMI"] = float(normalized_mutual_info_score(true_labels, labels))
        statistics["ARI"] = float(adjusted_rand_score(true_labels, labels))
    return statistics


def _checked(features: np.ndarray) -> np.ndarray:
    features = np.ascontiguousarray(features, dtype=np.float32)
    if features.ndim != 2 or len(features) == 0:
        raise VisionKitError(f"clustering: expected features (images, dimensions), got shape {features.shape}")
    if not np.isfinite(features).all():
        raise VisionKitError("clustering: features hold NaN or infinite values; did the training diverge?")
    return features
