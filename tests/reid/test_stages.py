"""The recipe of CORE-ReID as the stages build it: by their own defaults and by the published configs."""

import copy
import functools
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import reid_trees
import torch
from mmengine.hooks import ParamSchedulerHook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from visionkit.datasets import transforms as T
from visionkit.datasets.base import ReIDDataset
from visionkit.engine.config import load_config
from visionkit.engine.loaders import NamedLoaders, build_dataset
from visionkit.engine.pipeline import Context, build_stage
from visionkit.engine.stage import build_runner
from visionkit.registry import HOOKS, MODELS
from visionkit.reid.mean_teacher import MeanTeacherHook
from visionkit.reid.pseudo_labels import VIEWS, PseudoLabelHook
from visionkit.reid.stages import TargetFinetuning

from .tiny import TINY

CONFIGS = Path(__file__).parents[2] / "configs"
STYLED = "0002_c1s1_000001_01_fake_1to3.jpg"
BARE = dict(
    source=dict(type="visionkit.SourcePretraining", styled="camstyle", report="direct transfer"),
    target=dict(type="visionkit.TargetFinetuning", init_from="source", num_clusters=900, report="adapted"),
)
RECIPES = ["core_reid_market2duke", "bare"]  # a published config, and the stages' defaults
KMEANS = dict(batch_size=300, max_no_improvement=10, reassignment_ratio=0.01)
KMEANS_V2 = dict(batch_size=512, max_no_improvement=50, reassignment_ratio=0.05)
# names and probabilities of transforms
TEST = [("Resize", None), ("ToTensor", None), ("Normalize", None)]
CROP = [("Resize", None), ("RandomHorizontalFlip", 0.5), ("Pad", None), ("RandomCrop", None)]
GREY = [("RandomLocalGrayscale", 0.4)]
WHOLLY_GREY = [("RandomGrayscale", 0.05)]
TENSOR = [("ToTensor", None), ("Normalize", None)]
ERASED = [("RandomErasing", 0.5)]


@functools.cache
def config(name):
    return load_config(CONFIGS / f"{name}.py")


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory):
    """``people``, 35 identities of 4 images for both domains, and what a finished stage 0 leaves."""
    folder = tmp_path_factory.mktemp("recipe")
    people = reid_trees.write_market(folder / "people")
    for pid in range(100, 132):
        for cam in range(1, 5):
            name = reid_trees.market_name(pid, cam, 10 * pid + cam)
            reid_trees.write_image(people / "bounding_box_train" / name, pid)
    reid_trees.write_image(folder / "camstyle" / "images" / STYLED, 0)
    (folder / "SYNTHETIC.txt").touch()  # or the data sets would warn about their few images
    return folder


@pytest.fixture(scope="module")
def recipe(work_dir):
    """Makes the Runner's config of a stage, with the images of ``work_dir``; ``options`` are the stage's."""

    def read(name, stage, image_size=None, **options):
        cfg = copy.deepcopy(config("core_reid_market2duke" if name == "bare" else name))
        cfg["source"] = dict(type="visionkit.Market1501", root=str(work_dir / "people"))
        cfg["target"] = dict(type="visionkit.DukeMTMCreID", root=str(work_dir / "people"))
        cfg["workers"] = 0
        cfg["image_size"] = image_size or cfg["image_size"]
        settings = dict(BARE if name == "bare" else cfg["stages"])[stage]
        context = Context(cfg, work_dir / stage, 1, "none", dict(camstyle=work_dir / "camstyle"))
        return build_stage(stage, dict(settings, **options)).runner_cfg(context)

    return read


@pytest.fixture(scope="module")
def runner(recipe, work_dir):
    """Builds the Runner of a stage around a tiny network, once."""

    @functools.cache
    def build(name, stage):
        cfg = recipe(name, stage)
        cfg["model"]["backbone"] = TINY
        return build_runner(cfg, work_dir / "runs" / name / stage, seed=1)

    return build


def described(dataset):
    """Name and probability of each of a data set's transforms."""
    return [(type(each).__name__, getattr(each, "prob", None)) for each in dataset.transforms]


def hook_of(runner, kind):
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, kind)]
    return hook


def rates(cfg, epochs):
    """The learning rate that each epoch has."""
    optimizer, found = build_optim_wrapper(nn.Linear(1, 1), cfg["optim_wrapper"]), []
    schedulers = [PARAM_SCHEDULERS.build(dict(each, optimizer=optimizer)) for each in cfg.get("param_scheduler", [])]
    assert all(scheduler.by_epoch for scheduler in schedulers)
    for _ in range(epochs):
        found += optimizer.get_lr()["lr"]
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_rate_of_the_source_stage_warms_up_and_falls_twice(recipe, name):
    found = rates(recipe(name, "source"), 120)
    for epoch, share in {0: 0.01, 1: 0.109, 9: 0.901, 10: 1, 39: 1, 40: 0.1, 69: 0.1, 70: 0.01, 119: 0.01}.items():
        assert found[epoch] == pytest.approx(3.5e-4 * share), epoch


@pytest.mark.parametrize("name", RECIPES)
def test_rate_of_the_target_stage_stays(recipe, name):
    assert rates(recipe(name, "target"), 80) == [3.5e-4] * 80


@pytest.mark.parametrize("stage", ["source", "target"])
@pytest.mark.parametrize("name", RECIPES)
def test_adam_holds_every_trainable_weight(runner, name, stage):
    made = runner(name, stage)
    optimizer = made.build_optim_wrapper(made.cfg["optim_wrapper"]).optimizer
    assert type(optimizer) is torch.optim.Adam
    held = set()
    for group in optimizer.param_groups:
        assert (group["lr"], group["weight_decay"], group["betas"]) == (3.5e-4, 5e-4, (0.9, 0.999))
        held.update(group["params"])
    assert held >= {weight for weight in made.bare_model.parameters() if weight.requires_grad}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("stage, epochs, iterations, interval", [("source", 120, 200, 5), ("target", 80, 400, 1)])
def test_length_and_validation(runner, name, stage, epochs, iterations, interval):
    loop = runner(name, stage).train_loop
    assert (loop.max_epochs, len(loop.dataloaders), loop.val_interval) == (epochs, iterations, interval)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("stage, validated", [("source", "Market1501"), ("target", "DukeMTMCreID")])
def test_the_best_epoch_is_of_the_stage_s_own_domain_and_the_report_of_the_target(recipe, name, stage, validated):
    cfg = recipe(name, stage)
    assert cfg["best"] == "mAP"
    for loader, domain in ((cfg["val_dataloader"], validated), (cfg["test_dataloader"], "DukeMTMCreID")):
        data = build_dataset(loader["dataset"])
        assert data.metainfo["name"] == domain
        assert described(data.query) == described(data.gallery) == TEST


@pytest.fixture
def batches(recipe, monkeypatch):
    """Draws the first batch of each of a stage's loaders, without their pictures."""
    monkeypatch.setattr(ReIDDataset, "load", lambda self, index, labels: (torch.zeros(1), index))

    def draw(name, stage, label=lambda loaders: None):
        loaders = NamedLoaders(recipe(name, stage)["train_dataloader"], 1, seed=1)
        label(loaders)
        return loaders, next(iter(loaders))

    return draw


@pytest.mark.parametrize("name", RECIPES)
def test_batches_of_the_source_stage(batches, name):
    """32 identities x 4 images, and as many shuffled images of the target without labels."""
    loaders, batch = batches(name, "source")
    assert list(batch) == ["source", "target"] and loaders["target"].dataset.name == "DukeMTMCreID"
    assert sorted(torch.bincount(batch["source"]["pid"], minlength=35).tolist()) == [0] * 3 + [4] * 32
    unlabelled = batch["target"]
    assert (unlabelled["pid"] == -1).all() and len(unlabelled["index"].unique()) == 128
    assert (unlabelled["index"].diff() < 0).any()


@pytest.mark.parametrize("name", RECIPES)
def test_batches_of_the_target_stage(batches, name):
    """32 clusters x 4 images for each view, of its own labels."""

    def label(loaders):
        for turn, view in enumerate(VIEWS):
            loaders[view].set_labels(np.roll(loaders[view].dataset.pids, turn))

    loaders, batch = batches(name, "target", label)
    assert list(batch) == list(VIEWS) and loaders.dataset.dataset.name == "DukeMTMCreID"
    for view in VIEWS:
        assert sorted(torch.bincount(batch[view]["pid"], minlength=35).tolist()) == [0] * 3 + [4] * 32
        assert [loaders[view].labels[row] for row in batch[view]["index"]] == batch[view]["pid"].tolist()
    assert len({tuple(batch[view]["index"].tolist()) for view in VIEWS}) == 3


def test_styled_images_join_the_source_alone(recipe):
    loaders = recipe("core_reid_market2duke", "source")["train_dataloader"]
    source, target = build_dataset(loaders["source"]["dataset"]), build_dataset(loaders["target"]["dataset"])
    assert Path(source.samples[-1].path).name == STYLED and source.samples[-1][1:] == source.samples[0][1:] == (0, 0)
    assert len(source) == len(target) + 1 == 141 and source.num_pids == 35  # the test split's are not among them
    by_style = recipe("bare", "source", style_camera="style", unlabelled=None)["train_dataloader"]
    assert list(by_style) == ["source"] and build_dataset(by_style["source"]["dataset"]).camids[-1] == 2
    everyone = recipe("bare", "source", include_test=True)["train_dataloader"]["source"]["dataset"]
    assert build_dataset(everyone).num_pids == 37


@pytest.mark.parametrize(
    "name, more, size",
    [
        ("core_reid_market2duke", [], (256, 128)),
        ("bare", [], (256, 128)),
        ("core_reid_v2_market2cuhk", WHOLLY_GREY, (256, 128)),
        ("core_reid_v2_veri2vehicleid", WHOLLY_GREY, (256, 256)),
    ],
)
@pytest.mark.parametrize("stage, erased", [("source", []), ("target", ERASED)])
def test_augmentation(recipe, name, more, size, stage, erased):
    """Only the target stage erases."""
    cfg = recipe(name, stage)
    assert cfg["image_size"] == list(size)
    for loader in cfg["train_dataloader"].values():
        data = build_dataset(loader["dataset"])
        data = getattr(data, "dataset", data)
        assert described(data) == CROP + GREY + more + TENSOR + erased
        made = {type(each): each for each in data.transforms}
        assert made[T.Pad].padding == 10 and not made[T.RandomLocalGrayscale].released
        for sized in (T.Resize, T.RandomCrop):
            assert (made[sized].height, made[sized].width) == size
        assert T.AREA == (0.02, 0.4) and T.ASPECT == (0.3, pytest.approx(1 / 0.3))
        if erased:
            assert made[T.RandomErasing].fill.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


@pytest.mark.parametrize("name", RECIPES)
def test_hooks(runner, name):
    made = runner(name, "target")
    labels = hook_of(made, PseudoLabelHook)
    assert labels.reset_optimizer and not labels.compare_with_truth and labels.max_clusters == 900
    assert list(labels.clusterers) == list(VIEWS)
    assert hook_of(made, MeanTeacherHook)
    assert hook_of(runner(name, "source"), ParamSchedulerHook)
    assert not {PseudoLabelHook, MeanTeacherHook} & {type(hook) for hook in runner(name, "source").hooks}


def test_hooks_follow_the_switches(recipe):
    options = dict(reset_optimizer=False, compare_with_truth=True, model=dict(mean_teacher=False))
    hooks = recipe("bare", "target", **options)["custom_hooks"]
    assert [hook["type"] for hook in hooks] == ["visionkit.PseudoLabelHook"]
    assert not hooks[0]["reset_optimizer"] and hooks[0]["compare_with_truth"]
    cfg = recipe("bare", "target", model=dict(local=False), clusterer=dict(type="visionkit.JaccardDBSCANLabels"))
    assert list(cfg["train_dataloader"]) == ["global_view"]
    assert cfg["custom_hooks"][0]["clusterer"] == dict(global_view=dict(type="visionkit.JaccardDBSCANLabels"))


@pytest.mark.parametrize("preset", ["default", "released"])
def test_the_released_preset_reaches_beyond_the_network(preset):
    stage = TargetFinetuning("target", num_clusters=1500, model=dict(preset=preset))
    released = preset == "released"
    assert (stage.init_checkpoint == "best") == stage.augmentation.get("released", False) == released
    assert stage.kmeans == (dict(n_init=3) if released else {})
    own = dict(kmeans=dict(n_init=2), augmentation=dict(released=False), init_checkpoint="last")
    stage = TargetFinetuning("target", num_clusters=1500, model=dict(preset=preset), **own)
    assert stage.kmeans["n_init"] == 2 and stage.init_checkpoint == "last" and not stage.augmentation["released"]


def test_without_a_report_nothing_is_scored(recipe):
    assert not {"val_dataloader", "test_dataloader", "best"} & set(recipe("bare", "target", report=None))


@pytest.mark.parametrize(
    "name, numbers", [*((name, KMEANS) for name in RECIPES), ("core_reid_v2_market2msmt", KMEANS_V2)]
)
@pytest.mark.parametrize("clusters, init_sizes", [(900, [1500, 900, 900]), (2500, [7500] * 3)])
def test_what_scikit_learn_is_asked_for(recipe, name, numbers, clusters, init_sizes, monkeypatch):
    """More clusters than the released code's ``init_size`` make it three times their number."""
    asked = []

    class Recorder:
        def __init__(self, num_clusters, **options):
            asked.append(dict(options, num_clusters=num_clusters))

        def fit(self, features):
            self.labels_, self.cluster_centers_ = np.zeros(len(features)), features[:1]

    monkeypatch.setattr("sklearn.cluster.MiniBatchKMeans", Recorder)
    hook = HOOKS.build(recipe(name, "target", num_clusters=clusters)["custom_hooks"][0])
    for clusterer in hook.clusterers.values():
        clusterer.fit(np.zeros((9000, 1), np.float32), seed=0)
    assert [each["init_size"] for each in asked] == init_sizes
    expected = dict(numbers, num_clusters=clusters, max_iter=100)
    for each in asked:
        assert {key: each[key] for key in expected} == expected


class Looker(nn.Module):
    """Remembers the images whose features are asked for: their mean colour, for each view."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen = []

    def extract_fused(self, image):
        self.seen.append(image)
        return [image.mean((2, 3))] * 3

    def reset_classifier(self, num_clusters, centroids):
        self.classes = num_clusters


def test_clusters_are_of_plain_images(recipe, tmp_path):
    """Of every target image once, in its test transforms."""
    cfg = recipe("bare", "target", image_size=(16, 8), num_clusters=20)
    runner = MagicMock(model=Looker(), seed=1, epoch=0, work_dir=str(tmp_path))
    runner.train_loop.dataloaders = NamedLoaders(cfg["train_dataloader"], 1, seed=1)
    HOOKS.build(cfg["custom_hooks"][0]).before_train_epoch(runner)
    data = runner.train_loop.dataloaders.dataset.dataset
    plain = [item["image"] for item in data.with_transforms(T.test_transforms((16, 8)))]
    assert torch.equal(torch.cat(runner.model.seen), torch.stack(plain))
    assert runner.model.classes == 20


@pytest.mark.parametrize("name", RECIPES)
def test_models(recipe, name):
    source, target = recipe(name, "source")["model"], recipe(name, "target")["model"]
    assert source["backbone"] == dict(type="visionkit.ResNet", depth=50, weights="imagenet")
    assert target["backbone"] == dict(type="visionkit.ResNet", depth=50)  # its weights are the source stage's
    source, target = (MODELS.build(dict(model, backbone=TINY)) for model in (source, target))
    assert source.classifier.active == 35 and target.student.classifier.active == 900
    assert source.losses == dict(id=1, triplet=1)
    assert target.losses == dict(id=1, triplet=1, triplet_top=0.5, triplet_bottom=0.5, fusion=0.5)  # the last is ours
    assert target.ema_limit == pytest.approx(0.999) and target.ema_buffers == "own" and target.final is target.teacher
    assert all(model.bmfn and model.label_smoothing == 0.1 for model in (source, target))


PUBLISHED = {  # source, target, clusters, and the paper's mAP / rank-1 / 5 / 10
    "market2duke": ("Market1501", "DukeMTMCreID", 900, "74.8 / 84.8 / 92.4 / 94.4"),
    "duke2market": ("DukeMTMCreID", "Market1501", 700, "84.4 / 93.6 / 97.7 / 98.7"),
    "market2cuhk": ("Market1501", "CUHK03NP", 900, "62.9 / 61.0 / 79.6 / 87.2"),
    "cuhk2market": ("CUHK03NP", "Market1501", 900, "83.6 / 93.6 / 97.3 / 98.7"),
    "market2msmt": ("Market1501", "MSMT17", 2500, "41.9 / 69.5 / 80.3 / 84.4"),
    "duke2msmt": ("DukeMTMCreID", "MSMT17", 2500, "45.2 / 72.2 / 82.9 / 86.3"),
    "cuhk2msmt": ("CUHK03NP", "MSMT17", 2500, "40.4 / 67.3 / 79.0 / 83.1"),
    "v2_market2cuhk": ("Market1501", "CUHK03NP", 900, "66.4 / 66.9 / 83.4 / 88.9"),
    "v2_cuhk2market": ("CUHK03NP", "Market1501", 900, "84.5 / 93.9 / 97.6 / 98.7"),
    "v2_market2msmt": ("Market1501", "MSMT17", 2000, "44.1 / 71.3 / 82.4 / 86.0"),
    "v2_cuhk2msmt": ("CUHK03NP", "MSMT17", 2000, "40.7 / 68.7 / 79.7 / 83.4"),
    "v2_vehicleid2veri": ("VehicleID", "VeRi776", 500, "49.50 / 80.15 / 89.05 / 90.29"),
    "v2_veri2vehicleid": ("VeRi776", "VehicleID", 700, "67.04 / 58.32 / 76.51 / 84.32"),
    "v2_vehicleid2veriwild": ("VehicleID", "VERIWild", 700, "40.2 / 76.6 / 90.2 / 92.1"),
    "site": ("Market1501", "UnlabelledFolder", 500, ""),
}
SMALL = {"synthetic", "mavit_tiny_synthetic", "demo"}
TRAINING = dict(identities=32, instances=4, lr=3.5e-4, weight_decay=5e-4)
VEHICLES = {"VehicleID", "VeRi776", "VERIWild"}


def test_every_published_config_is_looked_at():
    assert {path.stem.removeprefix("core_reid_") for path in CONFIGS.glob("core_reid_*.py")} == {*PUBLISHED, *SMALL}


def check(stage, **settings):
    assert {key: getattr(stage, key) for key in settings} == settings


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_of_a_published_config(name):
    source, target, clusters, scores = PUBLISHED[name]
    assert scores in (CONFIGS / f"core_reid_{name}.py").read_text()
    cfg = config(f"core_reid_{name}")
    vehicles, v2 = source in VEHICLES, name.startswith("v2")
    grey = dict(grayscale=0.05) if v2 else {}
    assert tuple(cfg["image_size"]) == ((256, 256) if vehicles else (256, 128)) and cfg["seed"] == 1
    assert cfg["backbone"] == dict(type="visionkit.ResNet", depth=50, weights="imagenet")
    assert (cfg["source"]["type"], cfg["target"]["type"]) == (f"visionkit.{source}", f"visionkit.{target}")
    stages = {stage: build_stage(stage, settings) for stage, settings in cfg["stages"].items()}
    assert list(stages) == ["camstyle", "source", "target"]

    epochs, decay_epochs, batch_size = (100, 100, 32) if vehicles else (30, 20, 8 if source == "CUHK03NP" else 1)
    check(stages["camstyle"], epochs=epochs, decay_epochs=decay_epochs, batch_size=batch_size)
    check(stages["camstyle"], direction="AtoB" if vehicles else None, images=None, include_test=False)
    check(stages["camstyle"], image_size=(256, 256), load_size=(286, 286))
    check(stages["camstyle"], optimizer=dict(type="Adam", lr=2e-4, betas=(0.5, 0.999)))

    check(stages["source"], epochs=120, iters_per_epoch=200, val_interval=5, augmentation=grey, **TRAINING)
    check(stages["source"], warmup_epochs=10, milestones=(40, 70), styled="camstyle", unlabelled="target")

    erased = dict(grey, erasing=0.5)
    check(stages["target"], epochs=80, iters_per_epoch=400, val_interval=1, augmentation=erased, **TRAINING)
    check(stages["target"], num_clusters=clusters, kmeans=KMEANS_V2 if v2 else {}, clusterer=None)
    check(stages["target"], reset_optimizer=True, init_from="source")
    assert stages["target"].report == (None if name == "site" else "adapted")
