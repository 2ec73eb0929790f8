"""Exact k nearest neighbours in memory O(images x k): faiss or blocked matrix products, and a second look where needed.

Candidates are found in float32. Where two of them lie nearer to each other than the rounding of a product, their order,
and which of them is the last, is decided by differences in float64. So neighbours come in the order that exact
arithmetic gives, and equal distances rank by index. Copies of an image are looked at once, however many there are.
"""

import importlib.util
import sys
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_dist_info
from torch import Tensor

from visionkit.checks import check_choice, check_counts
from visionkit.errors import VisionKitError
from visionkit.extras import require
from visionkit.reid.distances import (
    GALLERY_TILE,
    BlockDistances,
    Features,
    block_rows,
    check_pair,
    computed_type,
    default_device,
    rows,
)

SPARE_CANDIDATES = 8  # beyond the k wanted, so that the order about the last of these is known
BACKENDS = ("auto", "torch", "faiss")


class Neighbours(NamedTuple):
    """Indices (Q, k) int64 and squared Euclidean distances (Q, k), nearest first; the largest distance (Q,) or None."""

    indices: np.ndarray
    distances: np.ndarray
    farthest: np.ndarray | None = None


def nearest_neighbours(
    query: Features,
    gallery: Features,
    k: int,
    *,
    backend: str = "auto",
    device: torch.device | str | None = None,
    farthest: bool = False,
    refine: bool = True,
) -> Neighbours:
    """The k nearest gallery rows of each query row.

    Args:
        query: (Q, D) tensor, array or memory map.
        gallery: (G, D) tensor, array or memory map.
        k: number of neighbours; at most G are returned.
        backend: ``"torch"`` (blocks of distances and ``topk``), ``"faiss"`` (needs the extra ``faiss``), or ``"auto"``:
            faiss on a CPU where it is installed, which is faster, unless the largest distance is wanted, else torch.
        device: device that torch computes on; by default that of the query features, for arrays a GPU where there is
            one.
        farthest: return each query's largest distance too (always by torch).
        refine: compute all distances that are returned in float64; else those whose order was certain keep float32's
            rounding.

    Returns:
        Indices in the order of exact distances, equal ones by index.

    Raises:
        VisionKitError: empty or mismatched features, or an unknown backend.
    """
    check_pair(query, gallery)
    check_choice("nearest_neighbours", BACKENDS, backend=backend)
    check_counts("nearest_neighbours", 1, k=k)
    k = min(k, len(gallery))
    wanted = min(k + SPARE_CANDIDATES, len(gallery))
    by_faiss = not farthest and _use_faiss(backend, device or default_device(query))
    if by_faiss:
        candidates, distances, largest, square = _faiss_candidates(query, gallery, wanted)
    else:
        candidates, distances, largest, square = _torch_candidates(query, gallery, wanted, device)
    if query is not gallery:
        square = np.maximum(square, _largest_square(query))
    # faiss finds nothing, index -1, where a distance is NaN.
    if candidates.min() < 0 or not (np.isfinite(square) and np.isfinite(distances).all()):
        raise VisionKitError("nearest neighbours: features hold NaN or infinite values; check the model's weights")
    margin = _margin(square, query.shape[1], _epsilon(query, gallery, by_faiss))
    near = np.diff(distances[:, : k + 1], axis=1) <= margin
    unsure = np.arange(len(query)) if refine else np.flatnonzero(near.any(1))
    candidates[unsure], distances[unsure] = _refine(query, gallery, unsure, candidates[unsure])
    if wanted < len(gallery):
        # More than SPARE_CANDIDATES images at almost one distance, as copies of an image are: others may be as near.
        crowded = np.flatnonzero(distances[:, -1] - distances[:, k - 1] <= margin)
        if len(crowded):
            again = _crowded_neighbours(_rows_at(query, crowded), gallery, k, device or default_device(query))
            candidates[crowded, :k], distances[crowded, :k] = again
    return Neighbours(candidates[:, :k], distances[:, :k], largest)


def self_neighbours(features: Features, k: int, *, distributed: bool = False, **options: Any) -> Neighbours:
    """The k nearest rows of each row within one set; each row comes first in its own list, at distance 0.

    Args:
        features: (N, D).
        k: number of neighbours, the row itself included.
        distributed: share the rows between the processes of torch.distributed; each gets the whole answer.
        options: further options of :func:`nearest_neighbours`.
    """
    found = (
        _shared_search(features, k, **options) if distributed else nearest_neighbours(features, features, k, **options)
    )
    own = np.arange(len(features))[:, None]
    # A row with k or more exact copies may be missing from its own list: it takes the last place.
    place = np.where((found.indices == own).any(1), (found.indices == own).argmax(1), found.indices.shape[1] - 1)
    column = np.arange(found.indices.shape[1])
    shifted = np.where(column <= place[:, None], column - 1, column).clip(min=0)
    indices = np.take_along_axis(found.indices, shifted, 1)
    distances = np.take_along_axis(found.distances, shifted, 1)
    indices[:, 0], distances[:, 0] = own[:, 0], 0
    return Neighbours(indices, distances, found.farthest)


def _shared_search(features: Features, k: int, **options: Any) -> Neighbours:
    """Each process takes a run of whole blocks, so that all products have the shapes that they have in one process."""
    rank, world = get_dist_info()
    size = block_rows(len(features))
    share = -(-len(features) // (size * world)) * size
    own = features[rank * share : (rank + 1) * share]
    parts = all_gather_object(nearest_neighbours(own, features, k, **options) if len(own) else None)
    columns = zip(*(part for part in parts if part is not None))
    return Neighbours(*(None if column[0] is None else np.concatenate(column) for column in columns))


def paired_distances(features: Features, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (P,) float64 of the pairs of rows (left[p], right[p])."""
    out = np.empty(len(left))
    size = max(1, (4 << 20) // features.shape[1])
    for start in range(0, len(left), size):
        at = slice(start, start + size)
        difference = _rows_at(features, left[at]) - _rows_at(features, right[at])
        out[at] = difference.square_().sum(1, dtype=torch.float64).numpy()
    return out


def _rows_at(features: Features, index: np.ndarray) -> Tensor:
    """Rows in memory, float32 or float64."""
    if isinstance(features, Tensor):
        part = features.detach()[torch.from_numpy(index).to(features.device)].cpu()
    else:
        part = torch.from_numpy(features[index])
    return part if part.dtype == torch.float64 else part.float()


def _torch_candidates(
    query: Features, gallery: Features, k: int, device: torch.device | str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """The k nearest (Q, k) by the products' distances, those distances, and the largest to the whole gallery.

    Also the largest squared norm of a gallery row.
    """
    blocks = BlockDistances(query, gallery, device=device)
    size = block_rows(len(gallery))
    indices, distances = np.empty((len(query), k), np.int64), np.empty((len(query), k))
    largest = np.empty(len(query))
    for start in range(0, len(query), size):
        block = blocks(start, min(start + size, len(query)))
        nearest = block.topk(k, dim=1, largest=False)
        indices[start : start + size] = nearest.indices.cpu().numpy()
        distances[start : start + size] = nearest.values.clamp_min(0).cpu().numpy()
        largest[start : start + size] = block.amax(1).cpu().numpy()
    return indices, distances, largest, float(blocks.squared_norms.max())


def _use_faiss(backend: str, device: torch.device | str) -> bool:
    if backend == "auto":
        # on macOS faiss and torch bring an OpenMP each and may crash (pytorch#149201, faiss-wheels#73)
        suits = torch.device(device).type == "cpu" and sys.platform != "darwin"
        return suits and importlib.util.find_spec("faiss") is not None
    return backend == "faiss"


def _faiss_candidates(query: Features, gallery: Features, k: int) -> tuple[np.ndarray, np.ndarray, None, float]:
    """The same by faiss, which does not know the largest distance."""
    faiss = require("faiss", "faiss")
    whole = rows(gallery, 0, len(gallery)).float().numpy()
    step = 65536
    parts = [rows(query, start, start + step).float().numpy() for start in range(0, len(query), step)]
    distances, indices = (np.concatenate(each) for each in zip(*(faiss.knn(part, whole, k) for part in parts)))
    return indices, distances.astype(np.float64), None, _largest_square(gallery)


def _largest_square(features: Features) -> float:
    starts = range(0, len(features), GALLERY_TILE)
    squares = [float(rows(features, start, start + GALLERY_TILE).square().sum(1).max()) for start in starts]
    return np.max(squares)  # Python's may lose a NaN


def _margin(square: float, dimensions: int, epsilon: float) -> float:
    """How far a distance from a product may be off: its rounding grows as the square root of the number of terms."""
    return 4 * square * dimensions**0.5 * epsilon


def _epsilon(query: Features, gallery: Features, by_faiss: bool) -> float:
    """Of the arithmetic that found the candidates: faiss knows float32 only."""
    exact = not by_faiss and all(computed_type(each) == torch.float64 for each in (query, gallery))
    return torch.finfo(torch.float64 if exact else torch.float32).eps


def _refine(
    query: Features, gallery: Features, queries: np.ndarray, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Order the candidates (R, k) of the query rows ``queries`` (R,) by their distance in float64, then by index."""
    indices, distances = np.empty_like(candidates), np.empty(candidates.shape)
    size = max(1, (1 << 20) // (candidates.shape[1] * gallery.shape[1]))
    for start in range(0, len(queries), size):
        index = np.sort(candidates[start : start + size], axis=1)
        own = _rows_at(query, queries[start : start + size]).double()
        near = _rows_at(gallery, index.reshape(-1)).double().reshape(*index.shape, -1)
        exact = near.sub_(own[:, None]).square_().sum(2).numpy()
        order = np.argsort(exact, axis=1, kind="stable")
        indices[start : start + size] = np.take_along_axis(index, order, 1)
        distances[start : start + size] = np.take_along_axis(exact, order, 1)
    return indices, distances


def _crowded_neighbours(
    query: Tensor, gallery: Features, k: int, device: torch.device | str
) -> tuple[np.ndarray, np.ndarray]:
    """The k neighbours (Q, k) of queries with many images at almost one distance, and their distances.

    Of rows that are copies one is looked at. Products are in float64, and about the middle of all images, where those
    of a model that has collapsed are small and leave little to be decided by differences.
    """
    asked, held = _EqualRows(query), _EqualRows(gallery)
    some, images = query[asked.first], _rows_at(gallery, held.first)
    middle = images.mean(0, dtype=torch.float64)
    blocks = BlockDistances(some - middle, images - middle, device=device)
    square = max(float(blocks.squared_norms.max()), _largest_square(blocks.query))
    margin = _margin(square, query.shape[1], torch.finfo(torch.float64).eps)
    size, least = block_rows(len(images)), min(k, len(images))
    indices, distances = np.empty((len(some), k), np.int64), np.empty((len(some), k))
    for start in range(0, len(some), size):
        block = blocks(start, min(start + size, len(some)))
        near = (block <= block.topk(least, dim=1, largest=False).values[:, -1:] + margin).cpu().numpy()
        for row, columns in enumerate(near, start):
            found, distance = _refine(some, images, np.array([row]), np.flatnonzero(columns)[None])
            indices[row], distances[row] = held.expand(found[0, :k], distance[0, :k], k)
    return indices[asked.kind], distances[asked.kind]


class _EqualRows:
    """Rows of features (N, D) sorted into kinds: rows of one kind are equal, byte for byte.

    ``kind`` (N,) of each row counts through the kinds in the order of their first rows, which ``first`` (U,) holds.
    """

    def __init__(self, features: Features) -> None:
        self.kind = _kinds_of(features)
        _, self.first, self.counts = np.unique(self.kind, return_index=True, return_counts=True)
        self.members = np.argsort(self.kind, kind="stable")
        self.starts = np.cumsum(self.counts) - self.counts

    def expand(self, kinds: np.ndarray, distances: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest rows, by distance and then by index, of one query's k nearest kinds and their distances."""
        enough = np.searchsorted(np.cumsum(self.counts[kinds]), k)
        kinds = kinds[distances <= distances[enough]]
        counts = np.minimum(self.counts[kinds], k)
        index = np.concatenate([self.members[at : at + count] for at, count in zip(self.starts[kinds], counts)])
        distance = np.repeat(distances[: len(kinds)], counts)
        order = np.lexsort((index, distance))[:k]
        return index[order], distance[order]


def _kinds_of(features: Features) -> np.ndarray:
    """A number (N,) for each row: that of the rows equal to it, 0 for the first, 1 for the next that is new."""
    numbers: dict[bytes, int] = {}
    found = np.empty(len(features), np.int64)
    for start in range(0, len(features), GALLERY_TILE):
        tile = rows(features, start, start + GALLERY_TILE).contiguous().numpy()
        for place, row in enumerate(tile, start):
            found[place] = numbers.setdefault(blake2b(row, digest_size=16).digest(), len(numbers))
    return found
