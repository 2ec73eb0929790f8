from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import nn

from visionkit.errors import VisionKitError
from visionkit.registry import HOOKS
from visionkit.reid.clustering import Clusters
from visionkit.reid.pseudo_labels import VIEWS, extract_fused, largest, view_seed


class Dots:
    """Images of one value each, in four groups; labels are written down."""

    def __init__(self, size=23):
        self.values = torch.arange(size) % 4 + 0.01 * torch.arange(size)
        self.dataset = SimpleNamespace(pids=(np.arange(size) % 4).tolist())

    def unlabelled(self, transforms):
        return self

    def set_labels(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return dict(image=self.values[index].reshape(1, 1, 1), index=index)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.images = 0

    def extract_fused(self, image):
        assert not self.training and not torch.is_grad_enabled()
        self.images += len(image)
        x = torch.cat([image.flatten(1), torch.ones(len(image), 1)], 1) * self.scale
        return x, 2 * x, x.flip(1)

    def reset_classifier(self, num_clusters, centroids):
        self.classifier = (num_clusters, centroids)


def run_hook(tmp_path, epoch=0, seed=0, size=23, **options):
    options.setdefault("clusterer", dict(type="visionkit.KMeansLabels", num_clusters=4))
    hook = HOOKS.build(dict(type="visionkit.PseudoLabelHook", batch_size=5, **options))
    model = Model()
    optimizer = torch.optim.Adam(model.parameters())
    model.scale.sum().backward()
    optimizer.step()
    runner = MagicMock(model=model, seed=seed, epoch=epoch, work_dir=str(tmp_path))
    runner.optim_wrapper.optimizer = optimizer
    runner.train_loop.dataloaders = {view: Dots(size) for view in VIEWS}
    hook.before_train_epoch(runner)
    return runner


def test_labels_classifier_and_optimiser(tmp_path):
    runner = run_hook(tmp_path, compare_with_truth=True)
    model = runner.model
    assert model.images == 23 and model.training  # each image once, for three clusterings
    for view in VIEWS:
        labels = runner.train_loop.dataloaders[view].labels
        assert len(labels) == 23
    number, centroids = model.classifier
    assert number == 4
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(4))
    assert not runner.optim_wrapper.optimizer.state
    saved = np.load(tmp_path / "pseudo_labels.npz")
    assert (saved["global_view"] == runner.train_loop.dataloaders["global_view"].labels).all() and saved["epoch"] == 0
    assert "NMI" in str(runner.logger.log.call_args_list)
    assert [p.name for p in tmp_path.iterdir()] == ["pseudo_labels.npz"]


def test_repeats_and_depends_on_seed_epoch_and_view(tmp_path):
    first, again = run_hook(tmp_path), run_hook(tmp_path)
    for view in VIEWS:
        a, b = (runner.train_loop.dataloaders[view].labels for runner in (first, again))
        assert (a == b).all()
    seeds = {view_seed(seed, epoch, view) for seed in range(3) for epoch in range(3) for view in range(3)}
    assert len(seeds) == 27


def test_keeps_moments_where_asked(tmp_path):
    assert run_hook(tmp_path, reset_optimizer=False).optim_wrapper.optimizer.state


def test_dbscan_takes_as_many_classes_as_it_finds(tmp_path):
    clusterer = dict(type="visionkit.JaccardDBSCANLabels", eps=0.9, min_samples=2, k1=4, k2=1)
    runner = run_hook(tmp_path, clusterer=clusterer, size=40)
    assert runner.model.classifier[0] == runner.train_loop.dataloaders["global_view"].labels.max() + 1


def test_errors(tmp_path):
    with pytest.raises(VisionKitError, match="3 images cannot make num_clusters=4"):
        run_hook(tmp_path, size=3)
    with pytest.raises(VisionKitError, match="one config for each of"):
        HOOKS.build(dict(type="visionkit.PseudoLabelHook", clusterer=dict(left=dict())))
    with pytest.raises(VisionKitError, match="no config for the model's view 'top'"):
        run_hook(tmp_path, clusterer=dict(global_view=dict(type="visionkit.KMeansLabels", num_clusters=4)))
    lonely = dict(type="visionkit.JaccardDBSCANLabels", eps=1e-9, min_samples=30, k1=4, k2=1)
    with pytest.raises(VisionKitError, match="left every image"):
        run_hook(tmp_path, clusterer=lonely)


def test_extraction_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    extract_fused(Model(), Dots(), batch_size=4)
    assert torch.equal(state, torch.get_rng_state())


def test_the_largest_clusters_keep_their_order():
    clusters = Clusters(np.array([2, 0, 2, -1, 1, 3, 3, 3]), np.arange(8.0).reshape(4, 2))
    kept = largest(clusters, 2)
    assert kept.labels.tolist() == [0, -1, 0, -1, -1, 1, 1, 1] and kept.centroids.tolist() == [[4, 5], [6, 7]]
    assert largest(clusters, 3).labels.tolist() == [1, 0, 1, -1, -1, 2, 2, 2]  # of equals the first
