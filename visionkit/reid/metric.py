"""The mmengine metric that scores a model on a query and a gallery split."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_world_size, is_main_process
from mmengine.evaluator import BaseMetric
from torch import Tensor

from visionkit.checks import check_counts, check_keys
from visionkit.errors import VisionKitError
from visionkit.registry import METRICS
from visionkit.reid.ranking import RankingResult, evaluate, mean_result
from visionkit.reid.rerank import KReciprocal

QUERY, GALLERY = 0, 1


@METRICS.register_module()
class ReIDMetric(BaseMetric):
    """mAP, CMC and mINP in percent over the items of a ``QueryGallery`` data set.

    Where the data set's ``metainfo["trials"]`` holds several splits into query and gallery (VehicleID), scores are
    averaged over them.

    Args:
        metric: ``"euclidean"`` or ``"cosine"``.
        ap: ``"finite_sum"`` or ``"trapezoid"``, see :func:`visionkit.reid.ranking.evaluate`.
        topk: ranks to report.
        rerank: options of k-reciprocal re-ranking, or True for the published ones; its scores are reported beside the
            plain ones, as ``rerank_*``.
        per_camera: report mAP and rank-1 of each query camera too, counted from 1 as in the data sets' file names.
        use_cameras: False for a data set without cameras (VehicleID): then no image is junk.
        prefix: put before each name in the log.
    """

    default_prefix = ""  # no prefix; mmengine would warn about None

    def __init__(
        self,
        metric: str = "euclidean",
        ap: str = "finite_sum",
        topk: Sequence[int] = (1, 5, 10),
        rerank: Mapping | bool | None = None,
        per_camera: bool = False,
        use_cameras: bool = True,
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device="cpu", prefix=prefix)
        for rank in topk:
            check_counts("ReIDMetric", 1, topk=rank)
        self.options = dict(metric=metric, ap=ap, topk=tuple(topk))
        self.rerank = {True: {}, False: None}[rerank] if isinstance(rerank, bool) else rerank
        self.per_camera, self.use_cameras = per_camera, use_cameras
        self._try_options()

    def _try_options(self) -> None:
        """Raises VisionKitError for a wrong option at once, not after the first epoch."""
        if self.rerank is not None:
            ours = {"query", "gallery", "device", "distributed"}  # which evaluate gives
            options = [name for name in inspect.signature(KReciprocal).parameters if name not in ours]
            check_keys(self.rerank, options, "rerank")
        two = np.eye(2, dtype=np.float32)
        # on the CPU: every process does this before it knows its GPU, and all would take memory of the first
        evaluate(two, two, [0, 1], None, [0, 1], None, **self.options, rerank=self.rerank, device="cpu")

    def process(self, data_batch: Mapping, data_samples: Tensor | Sequence[Tensor]) -> None:
        """Keep a batch: features (B, D) as the model predicts them, and the batch's pid, camid, index and role."""
        features = data_samples if isinstance(data_samples, Tensor) else torch.stack(list(data_samples))
        labels = [torch.as_tensor(data_batch[key]) for key in ("role", "index", "pid", "camid")]
        self.results.append((features.detach().float().cpu().numpy(), torch.stack(labels, 1).cpu().numpy()))

    def evaluate(self, size: int) -> dict[str, float]:
        """Score what all processes saw, on all of them: each ranks its share of the queries.

        mmengine's own would interleave batches as if they were images and cut them at ``size``.
        """
        parts = self.results
        if get_world_size() > 1:
            parts = [part for process in all_gather_object(self.results) for part in process]
        if not parts:
            raise VisionKitError("ReIDMetric: no image was evaluated; check the validation data set")
        metrics = self.compute_metrics(parts)
        self.results.clear()
        return {f"{self.prefix}/{key}" if self.prefix else key: value for key, value in metrics.items()}

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Scores in percent of the batches' (features, labels)."""
        features, (roles, index, pids, camids) = in_order(results)
        if is_main_process():
            self.features = features  # of the whole data set, in its order: what pictures are drawn from
        trials = (self.dataset_meta or {}).get("trials")
        if trials is None:
            splits, camids = [roles], camids if self.use_cameras else None
        else:  # repeated random splits, as VehicleID has them, know no cameras
            splits, camids = [np.asarray(trial)[index] for trial in trials], None
        metrics = in_percent(self._score(features, splits, pids, camids, per_camera=self.per_camera))
        if self.rerank is not None:
            reranked = in_percent(self._score(features, splits, pids, camids, rerank=self.rerank))
            metrics |= {f"rerank_{key}": value for key, value in reranked.items()}
        return metrics

    def _score(
        self,
        features: np.ndarray,
        splits: list[np.ndarray],
        pids: np.ndarray,
        camids: np.ndarray | None,
        **options: Any,
    ) -> RankingResult:
        """Evaluate each split into query and gallery, and average."""
        results = []
        for roles in splits:
            query, gallery = _places(roles, QUERY), _places(roles, GALLERY)
            cameras = (None, None) if camids is None else (camids[query], camids[gallery])
            labels = (pids[query], cameras[0], pids[gallery], cameras[1])
            both = (features[query], features[gallery])
            results.append(evaluate(*both, *labels, **self.options, **options, distributed=True))
        return results[0] if len(results) == 1 else mean_result(results)


def in_order(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) and labels (4, N) in the order of the data set, each image once; empties ``parts`` as it goes.

    A distributed sampler repeats images to fill its last batch.
    """
    labels = np.concatenate([labels for _, labels in parts])
    _, first = np.unique(labels[:, :2], axis=0, return_index=True)
    place = np.full(len(labels), -1)
    place[first] = np.arange(len(first))
    features = np.empty((len(first), parts[0][0].shape[1]), np.float32)
    done = len(labels)
    while parts:  # from the end, so that a part's memory is free when the next is copied
        batch, _ = parts.pop()
        done -= len(batch)
        to = place[done : done + len(batch)]
        features[to[to >= 0]] = batch[to >= 0]
    return features, labels[first].T


def _places(roles: np.ndarray, role: int) -> slice | np.ndarray:
    """Where a role is: as a slice, which copies nothing, if its images lie together."""
    places = np.flatnonzero(roles == role)
    together = len(places) and places[-1] - places[0] + 1 == len(places)
    return slice(places[0], places[-1] + 1) if together else places


def in_percent(result: RankingResult) -> dict[str, float]:
    """The scores of a result under the names that go to the log."""
    metrics = {"mAP": 100 * result.mAP}
    metrics |= {f"rank-{k}": 100 * value for k, value in result.cmc.items()}
    metrics["mINP"] = 100 * result.mINP
    for camera, scores in result.per_camera.items():
        name = f"camera{camera + 1}"
        metrics |= {f"{name}_mAP": 100 * scores["mAP"], f"{name}_rank-1": 100 * scores["rank1"]}
    return metrics
