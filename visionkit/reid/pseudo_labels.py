"""The hook that labels the target's images before every epoch: extract once, cluster three views, hand out labels."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast_object_list, get_dist_info, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from visionkit.engine.config import build
from visionkit.engine.runner import bare
from visionkit.engine.workers import start_worker
from visionkit.errors import VisionKitError
from visionkit.files import beside
from visionkit.registry import CLUSTERERS, HOOKS
from visionkit.reid.clustering import Clusters, cluster_statistics
from visionkit.reid.networks import evaluating

VIEWS = ("global_view", "top", "bottom")
LABEL_FILE = "pseudo_labels.npz"


@HOOKS.register_module()
class PseudoLabelHook(Hook):
    """Labels the three views' data sets by clustering, before every epoch.

    The model in eval mode turns all target train images, once, into three fused features
    (``model.extract_fused(image)``). Each view is clustered by itself with a seed that follows from the run's seed, the
    epoch and the view; a model without local branches has the global view alone. Then ``dataset.set_labels`` is called
    for each view's :class:`PseudoLabelDataset`, ``model.reset_classifier(num_clusters, centroids)`` with the global
    view's L2-normalised centroids, and the optimiser starts anew. Under DDP each process extracts its share; the first
    one clusters for all.

    Args:
        clusterer: config of a pseudo-label generator, or one for each view ``{"global_view": ..., "top": ..., ...}``.
        transforms: the test transforms that images get before features are extracted.
        batch_size: images a batch.
        num_workers: loader processes.
        reset_optimizer: forget the optimiser's moments, as the released code does by making a new one every epoch.
        compare_with_truth: log NMI and ARI against the true identities, for synthetic or benchmark data. They are
            logged only; nothing is chosen by them.
        max_clusters: so many of each view are kept, the largest, as the classifier has room for.
    """

    priority = "ABOVE_NORMAL"

    def __init__(
        self,
        clusterer: Mapping,
        transforms: Sequence[Any] | None = None,
        batch_size: int = 128,
        num_workers: int = 0,
        reset_optimizer: bool = True,
        compare_with_truth: bool = False,
        max_clusters: int | None = None,
    ) -> None:
        by_view = clusterer if "type" not in clusterer else dict.fromkeys(VIEWS, clusterer)
        if not set(by_view) <= set(VIEWS):
            raise VisionKitError(
                f"PseudoLabelHook: clusterer needs a type, or one config for each of {', '.join(VIEWS)}; "
                f"got {', '.join(by_view)}"
            )
        self.clusterers = {view: build(CLUSTERERS, cfg, "PseudoLabelHook, clusterer") for view, cfg in by_view.items()}
        self.transforms, self.batch_size, self.num_workers = transforms, batch_size, num_workers
        self.reset_optimizer, self.compare_with_truth = reset_optimizer, compare_with_truth
        self.max_clusters = max_clusters

    def before_train_epoch(self, runner: Any) -> None:
        """Label the data sets for the epoch that begins."""
        model = bare(runner.model)
        target = runner.train_loop.dataloaders["global_view"]
        images = target.unlabelled(self.transforms)
        features = extract_fused(model, images, self.batch_size, self.num_workers)
        clusters = self._cluster(features, runner.seed, runner.epoch)
        self._hand_out(runner, {view: clusters[view].labels for view in clusters})
        centroids = torch.nn.functional.normalize(torch.from_numpy(clusters["global_view"].centroids))
        self.num_classes = len(centroids)
        model.reset_classifier(self.num_classes, centroids)
        if self.reset_optimizer:
            runner.optim_wrapper.optimizer.state.clear()
        if is_main_process():
            self._report(runner, clusters, target)

    def epoch_state(self, runner: Any) -> dict[str, Any]:
        """The epoch's labels."""
        labels = {view: torch.from_numpy(labels) for view, labels in self.labels.items()}
        return dict(labels=labels, num_classes=self.num_classes)

    def load_epoch_state(self, runner: Any, state: dict[str, Any]) -> None:
        """Take up the labels that a stopped run had given; the classifier's weights are in its checkpoint."""
        self._hand_out(runner, {view: labels.cpu().numpy() for view, labels in state["labels"].items()})
        self.num_classes = state["num_classes"]
        bare(runner.model).use_classes(self.num_classes)

    def _hand_out(self, runner: Any, labels: Mapping[str, np.ndarray]) -> None:
        self.labels = labels
        for view in labels:
            runner.train_loop.dataloaders[view].set_labels(labels[view])

    def _cluster(self, features: Sequence[np.ndarray], seed: int, epoch: int) -> dict[str, Clusters]:
        """Cluster on the first process, so that all train on the same labels; an error there is an error everywhere."""
        answer = [None]
        if is_main_process():
            try:
                answer = [self._cluster_views(features, seed, epoch)]
            except VisionKitError as error:
                answer = [str(error)]
        broadcast_object_list(answer)
        if isinstance(answer[0], str):
            raise VisionKitError(answer[0])
        return answer[0]

    def _cluster_views(self, features: Sequence[np.ndarray], seed: int, epoch: int) -> dict[str, Clusters]:
        clusters = {}
        for number, (view, array) in enumerate(zip(VIEWS, features)):
            if view not in self.clusterers:
                raise VisionKitError(f"PseudoLabelHook: clusterer has no config for the model's view {view!r}; add one")
            clusters[view] = self.clusterers[view].fit(array, view_seed(seed, epoch, number))
            if clusters[view].labels.max() < 0:
                raise VisionKitError(
                    f"epoch {epoch + 1}: clustering left every image of {view} out; loosen it (a larger eps, a smaller "
                    "min_samples) or use KMeansLabels"
                )
            count = len(clusters[view].centroids)
            if self.max_clusters is not None and count > self.max_clusters:
                print_log(
                    f"epoch {epoch + 1}: {count} clusters of {view}, the largest {self.max_clusters} are kept; for all "
                    "of them raise the stage's num_clusters",
                    "current",
                    logging.WARNING,
                )
                clusters[view] = largest(clusters[view], self.max_clusters)
        return clusters

    def _report(self, runner: Any, clusters: Mapping[str, Clusters], dataset: Dataset) -> None:
        truth = np.asarray(dataset.dataset.pids) if self.compare_with_truth else None
        for view, (labels, centroids) in clusters.items():
            statistics = cluster_statistics(labels, len(centroids), truth)
            scalars = {f"clusters/{view}/{key}": value for key, value in statistics.items()}
            runner.visualizer.add_scalars(scalars, step=runner.epoch)
            numbers = ", ".join(f"{key} {value:.4g}" for key, value in statistics.items())
            runner.logger.log(
                logging.WARNING if statistics["empty"] else logging.INFO, f"clusters of {view}: {numbers}"
            )
        labels = {view: labels for view, (labels, _) in clusters.items()}
        save_labels(Path(runner.work_dir) / LABEL_FILE, runner.epoch, labels)


def largest(clusters: Clusters, count: int) -> Clusters:
    """The ``count`` largest clusters, in their order; the images of the others are left out (-1)."""
    sizes = np.bincount(clusters.labels[clusters.labels >= 0], minlength=len(clusters.centroids))
    kept = np.sort(np.argsort(-sizes, kind="stable")[:count])
    number = np.full(len(clusters.centroids) + 1, -1)  # the last entry is that of -1
    number[kept] = np.arange(count)
    return Clusters(number[clusters.labels], clusters.centroids[kept])


def view_seed(seed: int, epoch: int, view: int) -> int:
    """The seed of one clustering: 32 bits from the run's seed, the epoch and the view's number."""
    return int(np.random.SeedSequence([seed, epoch, view]).generate_state(1)[0])


def extract_fused(model: nn.Module, dataset: Dataset, batch_size: int, num_workers: int = 0) -> list[np.ndarray]:
    """Clustering features of every image of a data set: one array (N, C) float32 for each view.

    Under torch.distributed each process extracts every n-th image, and the first one, which clusters, gets the whole;
    the others get nothing, for three views of a large data set are gigabytes.
    """
    rank, world = get_dist_info()
    indices = list(range(rank, len(dataset), world))
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    # A generator of its own: the epoch's random numbers must not depend on how features were extracted.
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=default_collate,
        generator=generator,
        worker_init_fn=start_worker,
    )
    device = next(model.parameters()).device
    with evaluating(model):
        parts = [[part.float().cpu() for part in model.extract_fused(batch["image"].to(device))] for batch in loader]
    views = [torch.cat(parts_of_view) for parts_of_view in zip(*parts)]
    if world > 1:
        views = [_gather_strided(view, len(dataset), device) for view in views]
    return [view.numpy() for view in views if view is not None]


def _gather_strided(share: torch.Tensor, total: int, device: torch.device) -> torch.Tensor | None:
    """Put together, on the first process, the rows that processes took in turn."""
    rank, world = get_dist_info()
    longest = -(-total // world)
    padded = torch.zeros(longest, *share.shape[1:], device=device)
    padded[: len(share)] = share.to(device)
    shares = [torch.empty_like(padded) for _ in range(world)] if rank == 0 else None
    torch.distributed.gather(padded, shares)
    if shares is None:
        return None
    return torch.stack(shares, 1).flatten(0, 1)[:total].cpu()


def save_labels(path: Path, epoch: int, labels: Mapping[str, np.ndarray]) -> None:
    """Write the labels of an epoch, for whoever wants to look at them with ``numpy.load``: beside, then renamed."""
    with beside(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, epoch=epoch, **labels)
