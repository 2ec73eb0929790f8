"""k-reciprocal re-ranking and the Jaccard distance, on sparse neighbour sets.

Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017. The published code holds
several dense matrices over query and gallery together (35 GB each for MSMT17). Here neighbour sets and memberships are
sparse matrices with a few dozen entries a row, and a distance is made only where it is asked for: for a block of
queries, or for pairs of images that share a neighbour.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from visionkit.checks import check_counts
from visionkit.errors import VisionKitError
from visionkit.reid.distances import (
    BlockDistances,
    Features,
    block_rows,
    check_features,
    check_pair,
    computed_type,
)
from visionkit.reid.knn import Neighbours, paired_distances, self_neighbours

WEIGHTS = ("exp", "softmax")
PAIRS = 4 << 20  # (query, neighbour, gallery) triples that are expanded at a time, about 200 MB


class KReciprocal:
    """Re-ranked distances of blocks of queries: ``(1 - lambda) * jaccard + lambda * original``.

    ``original`` is the squared Euclidean distance, squared once more as the published code does and divided by the
    query's largest.

    Args:
        query: features (Q, D); L2-normalised as a rule.
        gallery: features (G, D).
        k1: neighbours that may be reciprocal.
        k2: neighbours over which memberships are averaged; 1 for none.
        lambda_value: share of the original distance.
        weights: ``"exp"`` weighs a neighbour by exp(-original), as the published code does; ``"softmax"`` by
            exp(-squared Euclidean distance), as SpCL and OpenUnReID do.
        count_self: the image itself is one of its k1 neighbours (SpCL, OpenUnReID); else it comes on top of them.
        backend: library of the neighbour search, see :func:`visionkit.reid.knn.nearest_neighbours`.
        device: device that distances are computed on.
        distributed: share the neighbour search between the processes of torch.distributed.

    Raises:
        VisionKitError: empty or mismatched features, or a wrong option.
    """

    def __init__(
        self,
        query: Features,
        gallery: Features,
        k1: int = 20,
        k2: int = 6,
        lambda_value: float = 0.3,
        *,
        weights: str = "exp",
        count_self: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        distributed: bool = False,
    ) -> None:
        check_pair(query, gallery)
        if not 0 <= lambda_value <= 1:
            raise VisionKitError(f"rerank: lambda_value must lie in [0, 1], got {lambda_value}")
        together = _concatenate(query, gallery)
        search = dict(backend=backend, device=device, distributed=distributed, farthest=True)
        membership, neighbours = memberships(together, k1, k2, weights, count_self, **search)
        self.lambda_value = lambda_value
        self._query = membership[: len(query)]
        self._gallery = membership[len(query) :].T.tocsr()
        self._farthest = _positive(neighbours.farthest[: len(query)])
        self._original = BlockDistances(query, gallery, device=device)

    def __call__(self, start: int, stop: int) -> Tensor:
        """Distances (stop - start, G)."""
        distances = torch.from_numpy(_jaccard(_shared_membership(self._query[start:stop], self._gallery)))
        if self.lambda_value == 0:
            return distances
        original = self._original(start, stop).cpu()
        farthest = torch.from_numpy(self._farthest[start:stop, None]).to(original)
        # where all images are one, both are what rounding left, and either may be the larger
        original = original.clamp_(min=0).clamp_(max=farthest).div_(farthest)
        return distances.mul_(1 - self.lambda_value).add_(original.square_(), alpha=self.lambda_value)


def rerank_distances(query: Features, gallery: Features, **options: object) -> Tensor:
    """All re-ranked distances (Q, G) at once; for many queries let ``evaluate(rerank=...)`` go by blocks instead.

    Args:
        query: features (Q, D).
        gallery: features (G, D).
        options: options of :class:`KReciprocal`: k1, k2, lambda_value, weights, count_self, ...
    """
    blocks = KReciprocal(query, gallery, **options)
    size = block_rows(len(gallery))
    return torch.cat([blocks(start, min(start + size, len(query))) for start in range(0, len(query), size)])


def jaccard_graph(
    features: Features,
    k1: int = 20,
    k2: int = 6,
    *,
    max_distance: float = 1.0,
    weights: str = "exp",
    count_self: bool = False,
    backend: str = "auto",
    device: torch.device | str | None = None,
) -> sparse.csr_matrix:
    """Jaccard distances between the images of one set, as far as they are below 1 and at most ``max_distance``.

    Args:
        features: (N, D); L2-normalised as a rule.
        k1: neighbours that may be reciprocal.
        k2: neighbours over which memberships are averaged; 1 for none.
        max_distance: larger distances are left out.
        weights: weights of the neighbours, see :class:`KReciprocal`.
        count_self: count an image among its own k1 neighbours, see :class:`KReciprocal`.
        backend: library of the neighbour search, see :func:`visionkit.reid.knn.nearest_neighbours`.
        device: device that distances are computed on.

    Returns:
        (N, N) float32, each row sorted by distance, as scikit-learn wants a precomputed neighbour graph. Pairs that are
        not stored share no neighbour (distance 1) or lie beyond ``max_distance``.
    """
    check_features(features, "features")
    membership, _ = memberships(features, k1, k2, weights, count_self, backend=backend, device=device)
    transposed = membership.T.tocsr()
    size = block_rows(len(features))
    # Most pairs share nothing or too little: only those that may be near enough become distances.
    least = max(0, (2 - 2 * max_distance) / (2 - max_distance) - 1e-5)
    parts = []
    for start in range(0, len(features), size):
        shared = _shared_membership(membership[start : start + size], transposed)
        place = np.flatnonzero(shared > least)
        value = _jaccard(shared.reshape(-1)[place])
        row, column = np.divmod(place[value <= max_distance], len(features))
        value = value[value <= max_distance]
        order = np.lexsort((value, row))
        counts = np.bincount(row, minlength=len(shared))
        parts.append((value[order].astype(np.float32), column[order].astype(np.int32), counts))
    values, columns, counts = (np.concatenate(each) for each in zip(*parts))
    return sparse.csr_matrix((values, columns, np.append(0, np.cumsum(counts))), shape=(len(features),) * 2)


def memberships(
    features: Features,
    k1: int,
    k2: int,
    weights: str = "exp",
    count_self: bool = False,
    *,
    farthest: bool = False,
    **search: Any,
) -> tuple[sparse.csr_matrix, Neighbours]:
    """How strongly each image belongs to the k-reciprocal neighbourhood of each other; rows (N, N) sum to 1.

    ``search``: backend, device and distributed of the neighbour search. Raises VisionKitError for a wrong option.
    """
    if weights not in WEIGHTS:
        raise VisionKitError(f"rerank: weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    check_counts("rerank", 1, k1=k1, k2=k2)
    depth = max(k1 + (not count_self), round(k1 / 2) + 1, k2)
    farthest = farthest or weights == "exp"
    neighbours = self_neighbours(features, depth, farthest=farthest, refine=False, **search)
    matrix = _expanded(neighbours.indices, k1, count_self)
    matrix.data = _weights(features, matrix, neighbours, weights)
    sums = np.add.reduceat(matrix.data, matrix.indptr[:-1])
    matrix.data /= np.repeat(sums, np.diff(matrix.indptr)).astype(matrix.dtype)
    if k2 > 1:
        nearest = _selection(neighbours.indices[:, :k2]).astype(matrix.dtype)
        matrix = nearest @ matrix
        matrix.data /= min(k2, len(neighbours.indices))
    return matrix, neighbours


def _expanded(indices: np.ndarray, k1: int, count_self: bool) -> sparse.csr_matrix:
    """R*: the reciprocal set of each image with those of its members that it overlaps by more than two thirds."""
    members = _reciprocal(indices[:, : k1 + (not count_self)])
    halves = _reciprocal(indices[:, : round(k1 / 2) + 1])
    overlap = (members @ halves.T).multiply(members).tocsr()
    sizes = np.diff(halves.indptr)
    overlap.data = (3 * overlap.data > 2 * sizes[overlap.indices]).astype(np.int32)
    overlap.eliminate_zeros()
    expanded = (members + overlap @ halves).tocsr()
    expanded.sort_indices()
    return expanded


def _reciprocal(indices: np.ndarray) -> sparse.csr_matrix:
    forward = _selection(indices)
    return forward.multiply(forward.T.tocsr()).tocsr()


def _selection(indices: np.ndarray) -> sparse.csr_matrix:
    """Ones (N, N) at the columns listed in each row of ``indices``."""
    number, k = indices.shape
    columns = np.sort(indices, axis=1).astype(np.int32).reshape(-1)
    starts = np.arange(0, number * k + 1, k)
    return sparse.csr_matrix((np.ones(number * k, np.int32), columns, starts), shape=(number, number))


def _weights(features: Features, matrix: sparse.csr_matrix, neighbours: Neighbours, weights: str) -> np.ndarray:
    """The unnormalised membership of every entry that ``matrix`` stores."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    distance = _stored_distances(features, row, matrix.indices, neighbours)
    if weights == "exp":
        distance = (distance / _positive(neighbours.farthest)[row]) ** 2
    exact = computed_type(features) == torch.float64
    return np.exp(-distance).astype(np.float64 if exact else np.float32)


def _positive(farthest: np.ndarray) -> np.ndarray:
    """Largest distances to divide by, also where all images are one."""
    return np.maximum(farthest, np.finfo(np.float32).tiny)


def _stored_distances(features: Features, row: np.ndarray, column: np.ndarray, neighbours: Neighbours) -> np.ndarray:
    """Distances of pairs in ascending order: most are known from the neighbour search, the others are computed."""
    number = len(features)
    order = np.argsort(neighbours.indices, axis=1)
    known = (np.arange(number)[:, None] * number + np.take_along_axis(neighbours.indices, order, 1)).reshape(-1)
    pair = row * number + column
    place = np.searchsorted(known, pair).clip(max=len(known) - 1)
    distance = np.take_along_axis(neighbours.distances, order, 1).reshape(-1)[place]
    missing = np.flatnonzero(known[place] != pair)
    distance[missing] = paired_distances(features, row[missing], column[missing])
    return distance


def _jaccard(shared: np.ndarray) -> np.ndarray:
    """The Jaccard distance from s, the sum of the smaller memberships: 1 - s / (2 - s)."""
    shared = np.minimum(shared, 1)
    return 1 - shared / (2 - shared)


def _shared_membership(query: sparse.csr_matrix, inverted: sparse.csr_matrix) -> np.ndarray:
    """Sums (B, G) over neighbours of the smaller of two memberships: (B, N), and the gallery's transposed, (N, G).

    Only neighbours that both have add to a sum, so each of a query's is looked up in the gallery's transposed matrix.
    """
    number, width = query.shape[0], inverted.shape[1]
    shared = np.zeros(number * width, query.dtype)
    row = np.repeat(np.arange(number), np.diff(query.indptr))
    count = np.diff(inverted.indptr)[query.indices]
    for at in _pieces(count, PAIRS):
        repeats = count[at]
        first = inverted.indptr[query.indices[at]] - np.append(0, np.cumsum(repeats)[:-1])
        place = np.repeat(first, repeats) + np.arange(repeats.sum())
        smaller = np.minimum(np.repeat(query.data[at], repeats), inverted.data[place])
        target = np.repeat(row[at] * width, repeats) + inverted.indices[place]
        np.add.at(shared, target, smaller)
    return shared.reshape(number, width)


def _pieces(count: np.ndarray, limit: int) -> Iterator[slice]:
    """Cut a list of counts into runs that add up to about ``limit``."""
    ends = np.cumsum(count)
    total = ends[-1] if len(ends) else 0
    cuts = np.unique(np.searchsorted(ends, np.arange(limit, total, limit)))
    yield from (slice(a, b) for a, b in zip(np.append(0, cuts), np.append(cuts, len(count))))


def _concatenate(query: Features, gallery: Features) -> Features:
    if isinstance(query, Tensor) and isinstance(gallery, Tensor):
        return torch.cat([query, gallery.to(query.device)])
    return np.concatenate([np.asarray(each.cpu() if isinstance(each, Tensor) else each) for each in (query, gallery)])
