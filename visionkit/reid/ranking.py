"""Scores of a ranking: mAP, CMC and mINP of the single-query protocol, by blocks of queries.

The rank of a match is the number of gallery images that come before it, so the distances of a query are sorted by
value only and each match is looked up; the order of the gallery itself is never made. Equal distances rank by their
place in the gallery, as a stable sort would.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from mmengine.dist import all_reduce, get_dist_info
from torch import Tensor

from visionkit.checks import check_choice
from visionkit.errors import VisionKitError
from visionkit.reid.distances import BlockDistances, DistanceFunction, Features, as_tensor, block_rows
from visionkit.reid.rerank import KReciprocal

Labels = Tensor | np.ndarray | Sequence[int]
DistanceBlock = Callable[[int, int], Tensor]


@dataclass
class RankingResult:
    """Scores as fractions of one, over the queries that have a match.

    Attributes:
        mAP: mean average precision.
        cmc: for each k, the share of queries whose first match is among the first k.
        mINP: mean of (matches) / (rank of the hardest match), Ye et al. 2021.
        num_valid_queries: queries with at least one match; the others do not count.
        per_camera: for each query camera ``dict(mAP, mINP, rank1, num_valid_queries)``; empty unless asked for.
        average_precision: (Q,), NaN where a query has no match.
        first_rank: (Q,) rank of the first match from 1 on, 0 where there is none.
    """

    mAP: float
    cmc: dict[int, float]
    mINP: float
    num_valid_queries: int
    per_camera: dict[int, dict[str, float]] = field(default_factory=dict)
    average_precision: np.ndarray | None = field(default=None, repr=False)
    first_rank: np.ndarray | None = field(default=None, repr=False)


def evaluate(
    query_features: Features,
    gallery_features: Features,
    query_pids: Labels,
    query_camids: Labels | None,
    gallery_pids: Labels,
    gallery_camids: Labels | None,
    *,
    metric: str | DistanceFunction = "euclidean",
    ap: str = "finite_sum",
    topk: Sequence[int] = (1, 5, 10, 20),
    rerank: Mapping | None = None,
    per_camera: bool = False,
    device: torch.device | str | None = None,
    distributed: bool = False,
) -> RankingResult:
    """Rank the gallery for each query and score the rankings.

    Gallery images with the query's identity and camera are junk for it, and those with identity -1 for every query.
    Queries without a remaining match are skipped. Identity 0 needs no rule: distractors match no query.

    Args:
        query_features: (Q, D) tensor, array or memory-mapped array; float64 is ranked in float64, all else in float32.
        gallery_features: (G, D) tensor, array or memory-mapped array.
        query_pids: (Q,) identities.
        query_camids: (Q,) cameras, or None for a data set without cameras (VehicleID), as ``gallery_camids`` then is.
        gallery_pids: (G,) identities.
        gallery_camids: (G,) cameras, or None.
        metric: ``"euclidean"``, ``"cosine"`` or a function (B, D), (T, D) -> (B, T).
        ap: ``"finite_sum"`` (1/R sum i/rank_i; what most papers report) or ``"trapezoid"`` (the official Market-1501
            code; 0.5 to 2.7 points lower).
        topk: ranks of the CMC curve to report.
        rerank: options of :class:`visionkit.reid.rerank.KReciprocal` (k1, k2, lambda_value, ...) or None.
        per_camera: score each query camera by itself too.
        device: device to compute on; by default that of the query features, for arrays a GPU where there is one.
        distributed: share the blocks between the processes of torch.distributed. Every process must call this with
            the same arguments and gets the same result, equal to that of one process.

    Returns:
        The scores.

    Raises:
        VisionKitError: an empty or wrongly sized input, a feature that is not finite, or no query with a match.
    """
    options = dict(ap=ap, topk=topk, per_camera=per_camera, distributed=distributed)
    labels = (query_pids, query_camids, gallery_pids, gallery_camids)
    if rerank is None:
        distances = BlockDistances(query_features, gallery_features, metric, device)
    else:
        if metric != "euclidean":
            raise VisionKitError(f"rerank: made for metric='euclidean', got {metric!r}; use that, or no rerank")
        shared = dict(device=device, distributed=distributed)
        distances = KReciprocal(query_features, gallery_features, **shared, **rerank)
    return evaluate_blocks(distances, (len(query_features), len(gallery_features)), *labels, **options)


def evaluate_distances(
    distances: Features,
    query_pids: Labels,
    query_camids: Labels | None,
    gallery_pids: Labels,
    gallery_camids: Labels | None,
    **options: object,
) -> RankingResult:
    """Score given distances (Q, G); a matrix, an array or a memory map. Options: ap, topk, per_camera, ...

    float64 is ranked in float64, all else, such as counts of differing bits, in float32.
    """

    def block(start: int, stop: int) -> Tensor:
        part = as_tensor(distances[start:stop])
        return part if part.dtype == torch.float64 else part.float()

    labels = (query_pids, query_camids, gallery_pids, gallery_camids)
    return evaluate_blocks(block, tuple(distances.shape), *labels, **options)


def evaluate_blocks(
    distances: DistanceBlock,
    shape: tuple[int, int],
    query_pids: Labels,
    query_camids: Labels | None,
    gallery_pids: Labels,
    gallery_camids: Labels | None,
    *,
    ap: str = "finite_sum",
    topk: Sequence[int] = (1, 5, 10, 20),
    per_camera: bool = False,
    distributed: bool = False,
) -> RankingResult:
    """Score distances that are made block by block: ``distances(start, stop)`` returns (stop - start, G).

    Args:
        distances: function of a range of queries (start, stop) that returns their distances (stop - start, G).
        shape: (Q, G).
        query_pids, query_camids, gallery_pids, gallery_camids: identities and cameras, see :func:`evaluate`.
        ap, topk, per_camera, distributed: options of the scores, see :func:`evaluate`.

    Raises:
        VisionKitError: as :func:`evaluate` does.
    """
    check_choice("evaluate", ("finite_sum", "trapezoid"), ap=ap)
    protocol = _Protocol(shape, query_pids, query_camids, gallery_pids, gallery_camids)
    size = block_rows(max(shape[1], 1))
    starts = range(0, shape[0], size)
    rank, world = get_dist_info() if distributed else (0, 1)
    scores = np.zeros((shape[0], 3))  # average precision, inverse negative penalty, rank of the first match
    for start in starts[rank::world]:
        stop = min(start + size, shape[0])
        scores[start:stop] = protocol.score(distances(start, stop), start, stop, ap)
    if world > 1:
        scores = _sum_over_processes(scores)
    return _summarise(scores, protocol, topk, per_camera)


def mean_result(results: Sequence[RankingResult]) -> RankingResult:
    """Average the scores of several trials (VehicleID: ten random galleries)."""
    return RankingResult(
        mAP=float(np.mean([r.mAP for r in results])),
        cmc={k: float(np.mean([r.cmc[k] for r in results])) for k in results[0].cmc},
        mINP=float(np.mean([r.mINP for r in results])),
        num_valid_queries=round(float(np.mean([r.num_valid_queries for r in results]))),
    )


class _Protocol:
    """Which gallery images each query may match, and the scores of a block of distances."""

    def __init__(
        self,
        shape: tuple[int, int],
        query_pids: Labels,
        query_camids: Labels | None,
        gallery_pids: Labels,
        gallery_camids: Labels | None,
    ) -> None:
        if (query_camids is None) != (gallery_camids is None):
            raise VisionKitError("query_camids and gallery_camids: give both, or neither for a set without cameras")
        self.query_pids = _labels(query_pids, shape[0], "query_pids")
        pids = _labels(gallery_pids, shape[1], "gallery_pids")
        self.kept = torch.from_numpy(np.flatnonzero(pids != -1)) if (pids == -1).any() else None
        pids = pids[pids != -1] if self.kept is not None else pids
        if shape[0] == 0 or len(pids) == 0:
            empty = "query" if shape[0] == 0 else "gallery"
            raise VisionKitError(f"{empty}: no images to rank; check the folder or split that it was read from")
        self.query_camids = self.gallery_camids = None
        if query_camids is not None:
            self.query_camids = _labels(query_camids, shape[0], "query_camids")
            cameras = _labels(gallery_camids, shape[1], "gallery_camids")
            self.gallery_camids = cameras if self.kept is None else cameras[self.kept.numpy()]
        self.by_pid = np.argsort(pids, kind="stable")  # images of an identity lie together, in gallery order
        self.pids, self.first, self.count = np.unique(pids[self.by_pid], return_index=True, return_counts=True)

    def candidates(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gallery images with each query's identity: places (B, C), which are real, and which of those are junk."""
        wanted = self.query_pids[start:stop]
        at = np.searchsorted(self.pids, wanted).clip(max=len(self.pids) - 1)
        count = np.where(self.pids[at] == wanted, self.count[at], 0)
        column = np.arange(max(count.max(), 1))
        real = column < count[:, None]
        place = self.by_pid[np.where(real, self.first[at][:, None] + column, 0)]
        junk = np.zeros_like(real)
        if self.query_camids is not None:
            junk = real & (self.gallery_camids[place] == self.query_camids[start:stop, None])
        return place, real, junk

    def score(self, distances: Tensor, start: int, stop: int, ap: str) -> np.ndarray:
        """Average precision, inverse negative penalty and first rank (B, 3) of a block of distances (B, G)."""
        if self.kept is not None:
            distances = distances[:, self.kept.to(distances.device)]
        arrays = self.candidates(start, stop)
        place, real, junk = (torch.from_numpy(array).to(distances.device) for array in arrays)
        distance = distances.gather(1, place)
        before = _number_before(distances, distance, place, real)
        # Candidates in their order of rank; a stable sort keeps the gallery's order among equals.
        order = distance.masked_fill(~real, torch.inf).sort(dim=1, stable=True).indices
        before, junk, real = before.gather(1, order), junk.gather(1, order), real.gather(1, order)
        rank = before - junk.cumsum(1) + 1  # junk does not count; rows of junk are dropped below
        return _scores(rank, real & ~junk, ap).cpu().numpy()


def _number_before(distances: Tensor, distance: Tensor, place: Tensor, real: Tensor) -> Tensor:
    """How many of a row's gallery images come before each candidate: those nearer, and equal ones of lower place."""
    ascending = _sorted_rows(distances)
    if not torch.isfinite(ascending[:, [0, -1]]).all():
        raise VisionKitError("distances: some are not finite; check the features for NaN or infinite values")
    nearer = torch.searchsorted(ascending, distance)
    tied = (torch.searchsorted(ascending, distance, right=True) - nearer > 1) & real
    row, column = tied.nonzero(as_tuple=True)
    places = torch.arange(distances.shape[1], device=distances.device)
    for part in torch.arange(len(row), device=row.device).split(max(1, (16 << 20) // distances.shape[1])):
        r, c = row[part], column[part]
        equal = distances[r] == distance[r, c, None]
        nearer[r, c] += (equal & (places < place[r, c, None])).sum(1)
    return nearer


def _sorted_rows(distances: Tensor) -> Tensor:
    """Sort each row by value. NumPy sorts values several times faster than torch on a CPU, and frees the GIL."""
    if distances.is_cuda:
        return distances.sort(dim=1).values
    ascending = distances.clone()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(lambda part: part.numpy().sort(axis=1), ascending.chunk(torch.get_num_threads())))
    return ascending


def _scores(rank: Tensor, match: Tensor, ap: str) -> Tensor:
    """Scores (B, 3) from the ranks (B, C), ascending, of those candidates that are matches."""
    rank, count = rank.double(), match.sum(1)
    found = match.cumsum(1).double()
    precision = found / rank.clamp_min(1)
    if ap == "trapezoid":
        previous = torch.where(rank > 1, (found - 1) / (rank - 1).clamp_min(1), torch.ones_like(rank))
        precision = (precision + previous) / 2
    average = (precision * match).sum(1) / count
    last = (rank * match).amax(1)
    first = torch.where(match, rank, torch.inf).amin(1)
    valid = count > 0
    return torch.stack([average, count / last, torch.where(valid, first, 0)], 1)


def _summarise(scores: np.ndarray, protocol: _Protocol, topk: Sequence[int], per_camera: bool) -> RankingResult:
    valid = scores[:, 2] > 0
    if not valid.all():
        _tell_skipped(valid, with_cameras=protocol.query_camids is not None)
    average, inverse, first = scores[valid].T
    cameras = {}
    if per_camera and protocol.query_camids is not None:
        camids = protocol.query_camids[valid]
        for camera in np.unique(camids):
            at = camids == camera
            scores_of = dict(mAP=average[at], mINP=inverse[at], rank1=first[at] <= 1)
            cameras[int(camera)] = {key: float(value.mean()) for key, value in scores_of.items()}
            cameras[int(camera)]["num_valid_queries"] = int(at.sum())
    return RankingResult(
        mAP=float(average.mean()),
        cmc={int(k): float((first <= k).mean()) for k in topk},
        mINP=float(inverse.mean()),
        num_valid_queries=int(valid.sum()),
        per_camera=cameras,
        average_precision=np.where(valid, scores[:, 0], np.nan),
        first_rank=scores[:, 2].astype(np.int64),
    )


def _tell_skipped(valid: np.ndarray, with_cameras: bool) -> None:
    """A warning about queries without a match; where none has one there is nothing to score."""
    another = " under another camera" if with_cameras else ""
    if not valid.any():
        advice = "and cameras, or pass no cameras for a set without them" if with_cameras else "of query and gallery"
        raise VisionKitError(
            f"no query has a match in the gallery: each query needs an image of its identity{another}; "
            f"check identities {advice}"
        )
    warnings.warn(f"{int((~valid).sum())} of {len(valid)} queries have no match{another} and are skipped")


def _labels(values: Labels, length: int, name: str) -> np.ndarray:
    array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.shape != (length,):
        raise VisionKitError(f"{name}: expected {length} labels, one an image, got shape {array.shape}")
    return array.astype(np.int64)


def _sum_over_processes(scores: np.ndarray) -> np.ndarray:
    """Each process filled in its own rows and left zeros elsewhere, so that the sum is exact (NaN marks no match)."""
    tensor = torch.from_numpy(np.nan_to_num(scores))
    all_reduce(tensor)
    return tensor.numpy()
