"""Scoring, re-ranking and clustering at the sizes of Market-1501 and MSMT17.

Features are made from identities, cameras and noise by a seed. Each job runs in a process of its own, after a small
round that loads the libraries; peak memory is the process's largest resident size, libraries (about 400 MiB) and
features included. Beside it runs a reference: a plain loop or the dense form of the published code, at the size that it
can bear (``reference_size``; ``reference_scale`` says by what its seconds were multiplied). ``error`` is the largest
difference between the two, of scores or distances. On a busy machine ``cpu_seconds`` and ``reference_cpu_seconds``
tell what would have been taken.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from benchmarks._measure import Measured, Timed, measure, timed

MARKET, MSMT, SMALL = (3368, 15913, 750), (11659, 82161, 3060), (842, 3978, 188)  # queries, gallery, identities
MSMT_TRAIN, MSMT_CLUSTERS = (32621, 1041), 2500
JOBS = {
    "score_market": ("mAP and CMC, 3368 x 15913, 256-d", "score", MARKET, 256),
    "score_msmt": ("mAP and CMC, 11659 x 82161, 2048-d", "score", MSMT, 2048),
    "rerank_small": ("re-ranking, 842 x 3978, 256-d", "rerank", SMALL, 256),
    "rerank_market": ("re-ranking, 3368 x 15913, 256-d", "rerank", MARKET, 256),
    "rerank_msmt": ("re-ranking and scores, 11659 x 82161, 2048-d", "rerank_scores", MSMT, 2048),
    "kmeans": ("mini-batch k-means, 32621 images of one view, 2048-d, 2500 clusters", "kmeans", MSMT_TRAIN, 2048),
    "jaccard": ("Jaccard and DBSCAN, 32621 images, 2048-d", "cluster", MSMT_TRAIN, 2048),
}
HEAVY = ("score_msmt", "rerank_msmt", "kmeans", "jaccard")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tools/benchmark.py reid``."""
    parser.add_argument(
        "--jobs",
        nargs="+",
        choices=JOBS,
        default=list(JOBS),
        help=f"jobs to run (default: all); heavy ones: {', '.join(HEAVY)}",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each job (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-reference", action="store_true", help="leave the reference loops out")


def run(options: argparse.Namespace) -> list[dict]:
    """One row for each job."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.jobs:
            title, kind, size, dim = JOBS[name]
            stem = str(Path(folder) / name)
            measure(make, stem, size, dim, options.seed, threads=options.threads)
            print(f"{title} ...", flush=True)
            rows.append(dict(job=title, **KINDS[kind](stem, options.threads, not options.no_reference)))
            print(rows[-1], flush=True)
            for file in Path(folder).iterdir():
                file.unlink()
    return rows


# Data


def make(stem: str, size: tuple[int, ...], dim: int, seed: int) -> None:
    """Write features (N, D) float32 as .npy, a block at a time, and labels; L2-normalised."""
    number, identities = sum(size[:-1]), size[-1]
    r = np.random.default_rng(seed)
    centres, styles = r.standard_normal((identities, dim), np.float32), r.standard_normal((6, dim), np.float32)
    pids, camids = r.integers(0, identities, number), r.integers(0, 6, number)
    features = np.lib.format.open_memmap(f"{stem}.npy", "w+", np.float32, (number, dim))
    for start in range(0, number, 8192):
        at = slice(start, start + 8192)
        x = centres[pids[at]] + 0.5 * styles[camids[at]]
        x += 1.5 * r.standard_normal(x.shape, np.float32)
        features[at] = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.savez(f"{stem}.npz", pids=pids, camids=camids, queries=size[0] if len(size) > 2 else 0)


def read(stem: str) -> tuple:
    """Memory-mapped query and gallery features, then their labels as ``evaluate`` takes them."""
    features, labels = np.load(f"{stem}.npy", mmap_mode="r"), np.load(f"{stem}.npz")
    q = int(labels["queries"])
    pids, camids = labels["pids"], labels["camids"]
    return features[:q], features[q:], pids[:q], camids[:q], pids[q:], camids[q:]


def our_row(ours: Measured) -> dict:
    """The common columns of a job, its reference not yet run."""
    return dict(seconds=ours.seconds, cpu_seconds=ours.cpu_seconds, peak_bytes=ours.peak_bytes, reference_seconds=None)


def few(data: tuple) -> tuple:
    """A small round of everything: the first queries, and a gallery in which they are found."""
    query, gallery, qp, qc, gp, gc = data
    pids, camids = np.resize(qp[:64], 256), np.arange(256) // 64
    return query[:64], gallery[:256], qp[:64], qc[:64] + 9, pids, camids


# Scores


def score(stem: str, threads: int, reference: bool) -> dict:
    """mAP and CMC, beside scikit-learn's average precision and a CMC loop over some queries."""
    ours = measure(our_scores, stem, threads=threads)
    row = our_row(ours)
    if reference:
        queries, gallery = shape(stem)
        part = min(queries, 20_000_000 // gallery)
        theirs = measure(loop_scores, stem, part, threads=threads)
        row |= dict(reference_seconds=theirs.seconds * queries / part, reference_peak_bytes=theirs.peak_bytes)
        row |= dict(reference_cpu_seconds=theirs.cpu_seconds * queries / part)
        row |= dict(reference_size=f"{part} x {gallery}", reference_scale=queries / part)
        row["error"] = abs(float(np.nanmean(ours.result[:part]) - np.nanmean(theirs.result)))
    return row


def shape(stem: str) -> tuple[int, int]:
    """Numbers of queries and gallery images."""
    query, gallery, *_ = read(stem)
    return len(query), len(gallery)


def our_scores(stem: str) -> Timed:
    """Average precision (Q,)."""
    from visionkit.reid.ranking import evaluate

    data = read(stem)
    evaluate(*few(data))
    return timed(lambda: evaluate(*data).average_precision)


def loop_scores(stem: str, part: int) -> Timed:
    """One query at a time: scikit-learn's average precision, and a walk down the list for the CMC curve."""
    query, gallery, qp, qc, gp, gc = read(stem)
    query, gallery = np.array(query[:part]), np.array(gallery)
    return timed(lambda: _loop(query, gallery, qp, qc, gp, gc))


def _loop(
    query: np.ndarray, gallery: np.ndarray, qp: np.ndarray, qc: np.ndarray, gp: np.ndarray, gc: np.ndarray
) -> np.ndarray:
    from sklearn.metrics import average_precision_score

    distances = 2 - 2 * query @ gallery.T
    precision, cmc = np.full(len(query), np.nan), np.zeros(20)
    for i, row in enumerate(distances):
        order = np.argsort(row, kind="stable")
        valid = ~((gp[order] == qp[i]) & (gc[order] == qc[i]))
        hits = (gp[order] == qp[i])[valid]
        if not hits.any():
            continue
        precision[i] = average_precision_score(hits, -row[order][valid])
        for k in range(20):
            if hits[k]:
                cmc[k:] += 1
                break
    return precision


# Re-ranking


def rerank(stem: str, threads: int, reference: bool) -> dict:
    """All re-ranked distances, beside the dense form where that fits."""
    ours = measure(our_rerank, stem, threads=threads)
    row = our_row(ours)
    if reference and sum(shape(stem)) < 8000:
        theirs = measure(dense_rerank, stem, threads=threads)
        row |= dict(reference_seconds=theirs.seconds, reference_peak_bytes=theirs.peak_bytes)
        row |= dict(reference_cpu_seconds=theirs.cpu_seconds)
        row["error"] = float(np.abs(ours.result - theirs.result).max())
    return row


def our_rerank(stem: str) -> Timed:
    """Distances at 100 000 places, after all were computed."""
    from visionkit.reid.rerank import rerank_distances

    query, gallery, *_ = read(stem)
    rerank_distances(query[:64], gallery[:256])
    done = timed(lambda: rerank_distances(query, gallery).numpy())
    return done._replace(result=sample(done.result))


def rerank_scores(stem: str, threads: int, reference: bool) -> dict:
    """Scores after re-ranking, by blocks of queries."""
    ours = measure(our_rerank_scores, stem, threads=threads)
    return our_row(ours) | dict(mAP=ours.result)


def our_rerank_scores(stem: str) -> Timed:
    """mAP after re-ranking."""
    from visionkit.reid.ranking import evaluate

    data = read(stem)
    options = dict(rerank=dict(k1=20, k2=6, lambda_value=0.3))
    evaluate(*few(data), **options)
    return timed(lambda: evaluate(*data, **options).mAP)


def sample(distances: np.ndarray) -> np.ndarray:
    """Some entries of a matrix, always the same ones."""
    flat = distances.reshape(-1)
    return flat[np.random.RandomState(0).randint(0, flat.size, 100_000)]


def dense_rerank(stem: str) -> Timed:
    """k-reciprocal re-ranking as the paper writes it: dense matrices, and a loop over images."""
    query, gallery, *_ = read(stem)
    done = timed(lambda: dense_distances(query, gallery))
    return done._replace(result=sample(done.result))


def dense_distances(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Re-ranked distances (Q, G)."""
    distances, memberships = dense_memberships(np.concatenate([query, gallery]), 20, 6)
    q = len(query)
    jaccard = np.stack([dense_jaccard(memberships[i], memberships[q:]) for i in range(q)])
    return 0.7 * jaccard + 0.3 * distances[:q, q:]


def dense_memberships(points: np.ndarray, k1: int, k2: int) -> tuple[np.ndarray, np.ndarray]:
    """Normalised distances (N, N) and expanded memberships (N, N)."""
    squares = np.square(points).sum(1)
    distances = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0) ** 2
    np.fill_diagonal(distances, 0)
    distances /= distances.max(1, keepdims=True)
    order = np.argsort(distances, axis=1, kind="stable")
    memberships = np.zeros_like(distances)
    for i in range(len(points)):
        members = reciprocal(order, i, k1 + 1)
        expanded = members
        for j in members:
            half = reciprocal(order, j, round(k1 / 2) + 1)
            if 3 * len(np.intersect1d(half, members)) > 2 * len(half):
                expanded = np.append(expanded, half)
        expanded = np.unique(expanded)
        weights = np.exp(-distances[i, expanded])
        memberships[i, expanded] = weights / weights.sum()
    return distances, np.stack([memberships[order[i, :k2]].mean(0) for i in range(len(points))])


def reciprocal(order: np.ndarray, i: int, k: int) -> np.ndarray:
    """Those of the first k of i's list in whose first k i is."""
    forward = order[i, :k]
    return forward[(order[forward, :k] == i).any(1)]


def dense_jaccard(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Jaccard distances (G,) of one row of memberships."""
    shared = np.minimum(own[own > 0], others[:, own > 0]).sum(1)
    return 1 - shared / (2 - shared)


# Clustering


def cluster(stem: str, threads: int, reference: bool) -> dict:
    """Jaccard graph and DBSCAN; the neighbour search is timed apart, and the dense form runs on a part."""
    ours = measure(our_clusters, stem, None, threads=threads)
    search, labels = ours.result
    row = our_row(ours) | dict(seconds=ours.seconds - search, search_seconds=search, clusters=int(labels.max()) + 1)
    if reference:
        part = 5000
        small = measure(our_clusters, stem, part, threads=threads)
        theirs = measure(dense_clusters, stem, part, threads=threads)
        row |= dict(reference_seconds=theirs.seconds, reference_peak_bytes=theirs.peak_bytes)
        row |= dict(reference_size=f"{part} images", reference_cpu_seconds=theirs.cpu_seconds)
        row |= dict(seconds_at_reference_size=small.seconds, cpu_seconds_at_reference_size=small.cpu_seconds)
        row["error"] = float((small.result[1] != theirs.result).mean())  # share of images with another label
    return row


def kmeans(stem: str, threads: int, reference: bool) -> dict:
    """One view's pseudo-labels, beside the released code's three starts; ``inertia`` is the sum of squares left."""
    ours = measure(our_kmeans, stem, None, threads=threads)
    row = our_row(ours) | dict(inertia=ours.result)
    if reference:
        theirs = measure(our_kmeans, stem, 3, threads=threads)
        row |= dict(reference_seconds=theirs.seconds, reference_cpu_seconds=theirs.cpu_seconds)
        row |= dict(reference_peak_bytes=theirs.peak_bytes, reference_inertia=theirs.result)
    return row


def our_kmeans(stem: str, n_init: int | None) -> Timed:
    """Squared distances of all images from their centres, added up."""
    from visionkit.reid.clustering import KMeansLabels

    features = np.load(f"{stem}.npy", mmap_mode="r")
    KMeansLabels(10).fit(features[:256], seed=0)
    done = timed(lambda: KMeansLabels(MSMT_CLUSTERS, n_init=n_init).fit(features, seed=0))
    labels, centroids = done.result
    return done._replace(result=float(np.square(features - centroids[labels]).sum()))


def our_clusters(stem: str, part: int | None) -> Timed:
    """Seconds of the neighbour search, and the labels."""
    from visionkit.reid import knn, rerank
    from visionkit.reid.clustering import JaccardDBSCANLabels

    features = np.load(f"{stem}.npy", mmap_mode="r")[:part]
    clusterer = JaccardDBSCANLabels(eps=0.6)
    clusterer.fit(features[:256])
    spent = []

    def search(*arguments: object, **options: object) -> knn.Neighbours:
        done = timed(lambda: knn.self_neighbours(*arguments, **options))
        spent.append(done.seconds)
        return done.result

    rerank.self_neighbours = search
    done = timed(lambda: clusterer.fit(features))
    return done._replace(result=(spent[0], done.result.labels))


def dense_clusters(stem: str, part: int) -> Timed:
    """Labels by dense matrices."""
    points = np.array(np.load(f"{stem}.npy", mmap_mode="r")[:part])
    return timed(lambda: dense_labels(points))


def dense_labels(points: np.ndarray) -> np.ndarray:
    """DBSCAN on the whole matrix of Jaccard distances."""
    from sklearn.cluster import DBSCAN

    _, memberships = dense_memberships(points, 20, 6)
    distances = np.stack([dense_jaccard(row, memberships) for row in memberships]).clip(0)
    return DBSCAN(eps=0.6, min_samples=4, metric="precomputed").fit_predict(distances)


KINDS = dict(score=score, rerank=rerank, rerank_scores=rerank_scores, cluster=cluster, kmeans=kmeans)
