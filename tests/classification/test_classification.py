import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from classification.trees import write_tree
from mmengine.optim import build_optim_wrapper

from visionkit.classification import ClassificationStage, ImageClassifier, TopK
from visionkit.cli import main
from visionkit.datasets import ImageClasses, RepeatedAugmentationSampler
from visionkit.engine.config import load_config
from visionkit.engine.pipeline import Context, build_stage
from visionkit.errors import VisionKitError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = sorted(path.name for path in CONFIGS.glob("*_imagenet1k.py"))
THIN = dict(dims=(32, 32, 64, 64), num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 1))


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "images")


def test_images_and_labels(tree):
    data = ImageClasses(str(tree), "val", (32, 40))
    assert data.classes == ["blue", "green", "red"] and len(data) == 12
    sample = data[-1]
    assert sample["image"].shape == (3, 32, 40) and sample["label"] == 2 and sample["path"].endswith("red/3.png")
    assert sample["image"][0].mean() > sample["image"][2].mean()
    train = ImageClasses(str(tree), "train", (32, 32))
    assert not torch.equal(train[0]["image"], train[0]["image"])


def test_augmentation_at_full_magnitude(tree, monkeypatch):
    monkeypatch.setattr("random.gauss", lambda mean, deviation: 10.0)
    data = ImageClasses(str(tree), "train", (32, 32))
    for seed in range(60):  # each draws two of fifteen operations
        np.random.seed(seed)
        assert data[0]["image"].isfinite().all()


@pytest.mark.parametrize("fault", ["no split", "empty class", "other classes"])
def test_bad_trees(tree, fault):
    if fault == "no split":
        shutil.rmtree(tree / "val")
    elif fault == "empty class":
        for file in (tree / "val" / "red").iterdir():
            file.unlink()
    else:
        (tree / "val" / "red").rename(tree / "val" / "rouge")
    with pytest.raises(VisionKitError, match="no such folder|red"):
        ImageClasses(str(tree), "val", (32, 32))


def test_repeats_come_on_end():
    torch.manual_seed(0)
    order = list(RepeatedAugmentationSampler(range(10), repeats=3))
    assert len(order) == 10 and order[0] == order[1] == order[2] != order[3]
    assert sorted(RepeatedAugmentationSampler(range(10))) == list(range(10))


def test_top_k():
    logits = torch.arange(12.0).expand(3, 12)
    metric = TopK()
    metric.process(dict(label=torch.tensor([11, 8, 0])), logits)
    assert metric.compute_metrics(metric.results) == {"top-1": 100 / 3, "top-5": 200 / 3}


def test_top_k_of_a_classifier_that_tells_nothing():
    metric = TopK()
    metric.process(dict(label=torch.tensor([2])), torch.zeros(1, 12))
    assert metric.compute_metrics(metric.results) == {"top-1": 0, "top-5": 0}
    with pytest.raises(VisionKitError, match="NaN"):
        metric.process(dict(label=torch.tensor([2])), torch.full((1, 12), float("nan")))


def test_loss_without_mixing_is_the_cross_entropy():
    torch.manual_seed(0)
    net = ImageClassifier("mavit_tiny", 3, THIN, mixup=0, cutmix=0, smoothing=0).eval()
    image, label = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    logits = net(image=image, label=label, mode="predict")
    loss = net(dict(image=image, label=label))["loss"]
    torch.testing.assert_close(loss, -logits.log_softmax(1)[[0, 1], label].mean())


def test_mixed_images_keep_their_labels_share():
    np.random.seed(0)
    net = ImageClassifier("mavit_tiny", 3, THIN, smoothing=0.1)
    _, target = net.mix(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(target.sum(dim=1), torch.ones(4))
    assert net(dict(image=torch.randn(4, 3, 32, 32), label=torch.tensor([0, 1, 2, 0])))["loss"].isfinite()


def test_unknown_model():
    with pytest.raises(VisionKitError, match="mavit_tinny"):
        ImageClassifier("mavit_tinny", 3)


@pytest.mark.parametrize("name", NAMES)
def test_published_recipes_build(name, tree, tmp_path):
    cfg = load_config(CONFIGS / name, {"source.root": str(tree)})
    context = Context(cfg, tmp_path, 1, "none", {})
    runner = build_stage("train", cfg["stages"]["train"]).runner_cfg(context)
    optimizer = runner["optim_wrapper"]["optimizer"]
    assert optimizer["lr"] == pytest.approx(1e-3 * 128 / 1024) and optimizer["weight_decay"] == 0.05
    warmup, cosine = runner["param_scheduler"]
    assert warmup["end"] == cosine["begin"] and cosine["end"] == 300  # the small tree is one step an epoch
    assert runner["train_dataloader"]["images"]["sampler"]["repeats"] == (1 if name.startswith("soft") else 3)
    assert runner.get("sync_bn") == (None if name.startswith("soft") else "torch")
    assert runner["model"]["bf16"] == (not name.startswith("soft"))


def test_weight_decay_leaves_out_vectors_and_class_tokens(tree, tmp_path):
    cfg = load_config(CONFIGS / "soft_tiny_imagenet1k.py", {"source.root": str(tree)})
    runner = build_stage("train", cfg["stages"]["train"]).runner_cfg(Context(cfg, tmp_path, 1, "none", {}))
    model = ImageClassifier("soft_tiny", num_classes=3, model_options=THIN)
    optimizer = build_optim_wrapper(model, runner["optim_wrapper"]).optimizer
    decayed = {id(group["params"][0]): group["weight_decay"] > 0 for group in optimizer.param_groups}
    for name, parameter in model.named_parameters():
        assert decayed[id(parameter)] == (parameter.dim() > 1 and "cls_token" not in name)


def test_trains_from_the_command_line(tree, tmp_path, capfd):
    options = {
        "source.root": tree, "image_size": "(32,32)", "workers": 0, "stages.train.epochs": 3,
        "stages.train.warmup_epochs": 1, "stages.train.batch_size": 6, "stages.train.lr": 0.03, "stages.train.ema": 0.5,
        "stages.train.model.num_classes": 3, "stages.train.model.bf16": False, "stages.train.repeats": 1,
    }  # fmt: skip
    options |= {f"stages.train.model.model_options.{key}": str(value).replace(" ", "") for key, value in THIN.items()}
    given = [f"{key}={value}" for key, value in options.items()]
    work = tmp_path / "work"
    command = ["train", str(CONFIGS / "mavit_tiny_imagenet1k.py"), "--work-dir", str(work), "--cfg-options", *given]
    assert main(command) == 0
    told = "".join(capfd.readouterr())
    assert "Epoch(train)" in told and "paramwise" not in told
    rows = json.loads((work / "results.json").read_text())
    assert {row["checkpoint"] for row in rows} >= {"last"}
    assert all(row["top-5"] == 100 for row in rows)  # of three classes


@pytest.mark.parametrize("option", ["iters_per_epoch", "batch_size"])
def test_a_count_below_one_is_told(option):
    with pytest.raises(VisionKitError, match=f"stage train: {option}=0; expected a whole number of at least 1"):
        ClassificationStage("train", {}, **{option: 0})
