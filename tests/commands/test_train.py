import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from reid.released import released

from visionkit.apis import ReIDInferencer
from visionkit.backbones import ResNet
from visionkit.cli import main
from visionkit.commands.train import quiet_on_a_full_disk
from visionkit.engine.checkpoints import load_checkpoint, save_checkpoint
from visionkit.reid import CoreReID, stages

from .site import write_site

ROOT = Path(__file__).parents[2]


def train(*arguments):
    return main(["train", "config.py", "--work-dir", "run", *arguments])


def refusal(capsys, *arguments):
    """The one line that a refused command prints."""
    capsys.readouterr()
    assert train(*arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_the_three_stages_through_the_tool(tmp_path):
    write_site(tmp_path)
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "config.py", "--work-dir", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "direct transfer" in done.stdout and "adapted" in done.stdout
    for name in ("camstyle/sheet.jpg", "source/epoch_1.pth", "target/ranked_lists.jpg"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert list((tmp_path / "run" / "target").rglob("events.out.tfevents*"))
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {row["model"] for row in rows} == {"direct transfer", "adapted"} and all(
        0 <= row["mAP"] <= 100 for row in rows
    )


@pytest.mark.parametrize("processes", [2])
def test_two_processes_under_torchrun(site, processes):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launch, str(ROOT / "tools" / "train.py"), str(site), "--work-dir", "run", "--launcher", "pytorch"]
    done = subprocess.run(command, cwd=site.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    checkpoint = load_checkpoint(site.parent / "run" / "target" / "epoch_1.pth")
    state, (first, second) = checkpoint["state_dict"], checkpoint["buffers"]
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())
    statistics = [key for key in first if key.endswith(("running_mean", "running_var"))]
    assert len(statistics) > 20  # each process evaluates a share of the images: with one and the same model
    assert all(torch.equal(first[key], second[key]) and torch.equal(first[key], state[key]) for key in statistics)
    rows = json.loads((site.parent / "run" / "results.json").read_text())
    assert [row["model"] for row in rows if row["checkpoint"] == "last"] == ["direct transfer", "adapted"]


def test_a_trained_checkpoint_is_tested_by_its_command(site, capsys):
    assert train() == 0
    rows = json.loads(Path("run/results.json").read_text())
    capsys.readouterr()
    assert main(["test", "config.py", "run/target/epoch_1.pth"]) == 0
    printed = capsys.readouterr().out
    assert f"{rows[-1]['mAP']:.1f}" in printed and "rank-1" in printed
    options = ["stages.target.metric.rerank=True", "stages.target.metric.per_camera=True"]
    assert main(["test", "config.py", "run/target/epoch_1.pth", "--cfg-options", *options]) == 0
    printed = capsys.readouterr().out
    assert "rerank_mAP" in printed and "camera1_rank-1" in printed
    assert main(["test", "config.py", "run/source/epoch_1.pth"]) == 0
    # the target stage's network is not the source stage's
    assert main(["test", "config.py", "run/source/epoch_1.pth", "--stage", "target"]) == 2
    assert "another architecture" in capsys.readouterr().err
    assert main(["test", "config.py", "elsewhere/none.pth"]) == 2
    assert "elsewhere/none.pth: no such checkpoint" in capsys.readouterr().err
    shutil.copy("run/target/epoch_1.pth", "moved.pth")
    assert main(["test", "config.py", "moved.pth"]) == 2
    assert "is no stage of the config; give --stage" in capsys.readouterr().err
    for option, expected in (
        ("image_size=64", "image_size=64; expected (height, width)"),
        ("image_size=None", "image_size=None; expected (height, width)"),
        ("seed=-1", "seed=-1: expected a whole number"),
        ("sed=3", "did you mean 'seed'"),
        ("stages.target.metric=3", "stage target: cannot be built from its settings"),
        ("stages=3", "holds no stages"),
    ):
        assert main(["test", "config.py", "run/target/epoch_1.pth", "--cfg-options", option]) == 2
        assert expected in capsys.readouterr().err


def scores(capsys):
    """The numbers of the last line printed."""
    return re.findall(r"\d+\.\d", capsys.readouterr().out.splitlines()[-2])


def test_a_released_file_is_tested_by_the_same_command(site, capsys):
    network = CoreReID(ResNet(18, last_stride=2), num_classes=4, preset="released")
    torch.save(dict(state_dict=released(network)), "model_best.pth.tar")
    more = 'backbone = dict(type="visionkit.ResNet", depth=18, last_stride=2)\nimage_size = (64, 32)\n'
    site.write_text(site.read_text() + more)
    assert main(["test", "config.py", "model_best.pth.tar", "--stage", "target"]) == 0
    printed = scores(capsys)
    torch.save(dict(state_dict=network.state_dict()), "ours.pth")
    assert main(["test", "config.py", "ours.pth", "--stage", "target"]) == 0
    assert scores(capsys) == printed


OWN = """
import torch
from torch import nn

from visionkit.registry import MODELS


@MODELS.register_module(force=True)
class OwnBackbone(nn.Module):
    num_features = 6

    def __init__(self, depth=2):
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, depth)]  # which a tensor without memory has not
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.BatchNorm2d(6), nn.ReLU())

    def forward(self, x):
        return self.body(x)
"""


def test_parts_of_ones_own_come_by_custom_imports(site, monkeypatch):
    """The module lies beside the config, where nothing but the config's own folder leads."""
    Path("own_parts.py").write_text(OWN)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(site.parent))])
    more = """
custom_imports = dict(imports=["own_parts"])
backbone = dict(type="visionkit.OwnBackbone")
"""
    site.write_text(site.read_text() + more)
    assert train() == 0
    assert ReIDInferencer("run/target/epoch_1.pth").features("data").shape[1] > 0


def test_a_stage_is_left_out_by_none(tmp_path, monkeypatch):
    write_site(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = ["stages.camstyle=None", "stages.source.styled=None", "stages.target=None"]
    assert train("--cfg-options", *options) == 0
    assert sorted(path.name for path in Path("run").iterdir() if path.is_dir()) == ["source"]
    assert main(["test", "config.py", "run/source/epoch_1.pth", "--cfg-options", *options]) == 0


def test_images_are_cached_at_the_size_that_is_used(site, capsys):
    options = ["source.cache=memory", "source.cache_size=(16,8)"]
    assert "source.cache_size=(16, 8) is not image_size=(32, 16)" in refusal(capsys, "--cfg-options", *options)


def test_a_site_whose_cameras_are_not_known(site, capsys, monkeypatch):
    for file in Path("data/DukeMTMC-reID").rglob("*_c*.jpg"):
        file.rename(file.with_name(re.sub("_c[0-9]", f"_c1_{file.name.split('_c')[1][0]}", file.name)))
    assert "set metric=dict(use_cameras=False) where cameras are not known" in refusal(capsys)
    options = [f"stages.{stage}.metric.use_cameras=False" for stage in ("source", "target")]
    drawn, draw = [], stages.draw_ranked_lists
    monkeypatch.setattr(stages, "draw_ranked_lists", lambda lists, *more: drawn.extend(lists) or draw(lists, *more))
    assert train("--cfg-options", *options) == 0
    assert drawn and all(any(found.right for found in ranked.gallery) for ranked in drawn)


def test_a_site_without_any_label(site, capfd):
    """Crops in a folder a camera are all that there is of it: no names, no query, no gallery."""
    for number, image in enumerate(sorted(Path("data/DukeMTMC-reID/bounding_box_train").glob("*.jpg"))):
        place = Path("crops") / ("door" if "_c1_" in image.name else "lift")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place / f"frame {number}.JPG")
    more = """
target = dict(type="visionkit.UnlabelledFolder", root="crops")
stages["source"].update(report="before", report_on="source")
"""
    site.write_text(site.read_text() + more)
    assert "UnlabelledFolder: crops has no identities to test on; give its stages report=None" in refusal(capfd)
    site.write_text(site.read_text() + 'stages["target"].update(report=None)\n')
    assert train() == 0
    assert "weights in run/target/epoch_1.pth" in "".join(capfd.readouterr())
    assert [row["model"] for row in json.loads(Path("run/results.json").read_text())] == ["before"] * 2
    assert ReIDInferencer("run/target/epoch_1.pth").features("crops").shape[0] == len(
        list(Path("crops").rglob("*.JPG"))
    )
    assert main(["test", "config.py", "run/target/epoch_1.pth", "--stage", "target"]) == 2
    assert "has no test data" in capfd.readouterr().err


def test_a_source_that_one_camera_saw(site, capsys):
    """Nothing can be found again there, so that nothing validates."""
    for number, image in enumerate(sorted(Path("data/Market-1501-v15.09.15/bounding_box_train").glob("*_c1*.jpg"))):
        place = Path("crops") / image.name.split("_")[0] / f"cam1_{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place)
    options = ["source.type=visionkit.FolderReID", "source.root=crops", "source.train_share=0.9"]
    options += ["stages.source.report=None", "stages.source.identities=2"]
    assert "identities that two cameras saw" in refusal(capsys, "--stage", "source", "--cfg-options", *options)
    assert train("--stage", "source", "--cfg-options", *options, "stages.source.val_interval=None") == 0
    assert Path("run/source/epoch_1.pth").is_file() and not Path("run/source/best.pth").exists()


def test_more_clusters_than_there_is_room_for(site, capfd):
    """How many DBSCAN finds is not known before."""
    options = dict(type="visionkit.JaccardDBSCANLabels", eps=0.01, min_samples=1, k1=3, k2=1)
    clusterer = [f"stages.target.clusterer.{key}={value}" for key, value in options.items()]
    assert train("--cfg-options", "stages.target.num_clusters=2", *clusterer) == 0
    told = "".join(capfd.readouterr())
    assert "the largest 2 are kept" in told and "raise the stage's num_clusters" in told


def test_a_missing_and_a_half_data_set(site, capsys):
    gallery = Path("data/DukeMTMC-reID/bounding_box_test")
    gallery.rename("elsewhere")
    assert "lacks bounding_box_test" in refusal(capsys)
    gallery.mkdir()
    assert "the gallery split under" in refusal(capsys)
    Path("data").rename("gone")
    assert "Market" in refusal(capsys)


def test_queries_whose_identity_no_other_camera_saw(site, capsys):
    for image in Path("data/DukeMTMC-reID/bounding_box_test").glob("*"):
        if "_c1_" not in image.name:
            image.unlink()
    assert "camera" in refusal(capsys)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 not a picture"])
def test_a_broken_training_image_is_named_and_left_out(site, content, recwarn):
    broken = sorted(Path("data/Market-1501-v15.09.15/bounding_box_train").glob("*.jpg"))[0]
    broken.write_bytes(content)
    assert train("--stage", "source", "--cfg-options", "stages.source.iters_per_epoch=6") == 0
    assert any(broken.name in str(warning.message) for warning in recwarn)


def test_a_broken_gallery_image_stops_evaluation(site, capsys):
    broken = sorted(Path("data/DukeMTMC-reID/bounding_box_test").glob("*.jpg"))[0]
    broken.write_bytes(b"")
    assert broken.name in refusal(capsys, "--stage", "source")


def test_fewer_images_than_clusters(site, capsys):
    message = refusal(capsys, "--cfg-options", "stages.target.num_clusters=500")
    assert "500" in message and "num_clusters" in message


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--cfg-options", "stages.target.epoch=3"], "did you mean 'epochs'"),
        (
            ["--cfg-options", "stages.target.type=visionkit.TargetFinetunig"],
            "did you mean 'visionkit.TargetFinetuning'",
        ),
        (["--cfg-options", "sauce.root=x"], "did you mean 'source'"),
        (["--cfg-options", "source.type=visionkit.Markt1501"], "did you mean 'visionkit.Market1501'"),
        (["--cfg-options", "backbone.type=visionkit.ResNeet"], "did you mean 'visionkit.ResNet'"),
        (["--cfg-options", "source.rooot=x"], "did you mean 'root'"),
        (["--cfg-options", "source.type=Market1501"], "did you mean 'visionkit.Market1501'"),
        (["--cfg-options", "source.type=visonkit.Market1501"], "did you mean 'visionkit.Market1501'"),
        (["--cfg-options", "backbone.type=ResNeet"], "did you mean 'visionkit.ResNet'"),
        (["--cfg-options", "stages.target.model.secabb=False"], "did you mean 'secab'"),
        (
            ["--cfg-options", "stages.target.clusterer.type=visionkit.KMeansLabel"],
            "did you mean 'visionkit.KMeansLabels'",
        ),
        (
            [
                "--cfg-options",
                "stages.target.clusterer.type=visionkit.JaccardDBSCANLabels",
                "stages.target.clusterer.epz=0.5",
            ],
            "did you mean 'eps'",
        ),
        (["--cfg-options", "stages.target.metric.rerank.k11=5"], "did you mean 'k1'"),
        (["--cfg-options", "stages.target.metric.ap=finite"], "expected 'finite_sum'"),
        (["--cfg-options", "stages.target.model.preset=publshed"], "'released'"),
        (["--stage", "sauce"], "did you mean 'source'"),
        (["--cfg-options", "stages.target.init_from=nowhere.pth"], "nowhere.pth"),
        (["--cfg-options", "stages.target.init_from=None"], "has no init_from"),
        (["--cfg-options", "stages.target.model.num_classes=9"], "num_classes is num_clusters"),
        (["--cfg-options", "stages.target.num_clusters=0"], "num_clusters=0"),
        (
            ["--cfg-options", "stages.target.kmeans.batches=9"],
            "did you mean 'batch_size'",
        ),
        (["--cfg-options", "stages.target.instances=1"], "instances=1"),
        (["--cfg-options", "stages.source.lr=big"], "lr='big'; expected a number above 0"),
        (["--cfg-options", "image_size=[0,0]"], "image_size=[0, 0]; expected (height, width)"),
        (["--cfg-options", "image_size=foo"], "image_size='foo'"),
        (["--cfg-options", "workers=-1"], "workers=-1"),
        (["--cfg-options", "source.root=nowhere"], "or make its stand-in: python datasets/synthesize_reid.py"),
        (["--cfg-options", "stages.source.warmup_epochs=-3"], "warmup_epochs=-3"),
        (["--cfg-options", "stages.source.style_camera=nonsense"], "style_camera='nonsense'"),
        (["--cfg-options", "stages.source.data=sauce"], "source: data='sauce'; expected 'source' or 'target'"),
        (["--cfg-options", "stages.source.unlabelled=traget"], "stage source: unlabelled='traget'"),
        (["--cfg-options", "stages.target.report_on=traget"], "stage target: report_on='traget'"),
        (["--cfg-options", "stages.source.styled=camstlye"], "styled='camstlye' is neither"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_names(site, capsys, options, expected):
    assert expected in refusal(capsys, *options)
    assert not Path("run").exists()  # told before anything runs


NOT_THERE = [
    f"backbone.{key}={value}" for key, value in dict(depth=18, type="visionkit.ResNet", weights="gone.pth").items()
]


@pytest.mark.parametrize(
    "options, expected",
    [
        (["stages.source.lr=nan"], "stage source: lr=nan; expected a number above 0"),
        (["stages.target.weight_decay=x"], "stage target: weight_decay='x'; expected a number of at least 0"),
        (["stages.target.weight_decay=nan"], "stage target: weight_decay=nan"),
        (["stages.source.milestones=[a,b]"], "stage source: milestones='a'"),
        (["stages.target.kmeans.max_iter=0"], "KMeansLabels: max_iter=0"),
        (["stages.target.kmeans.num_clusters=2"], "stage target, kmeans: num_clusters"),
        (
            [f"stages.target.clusterer.{each}" for each in ("type=visionkit.KMeansLabels", "num_clusters=500")],
            "num_clusters=500, but the target has 12 training images",
        ),
        (["stages.target.model.ema_limit=2"], "ema_limit=2"),
        (["stages.target.model.losses.id=x"], "losses: id='x'"),
        (["stages.target.augmentation.pad=2.5"], "padding=2.5"),
        (["image_size=[8,8]"], "the feature map is 1 high"),
        (NOT_THERE, "gone.pth: no such checkpoint"),
    ],
)
def test_a_value_that_cannot_be_is_told_before_any_stage_works(site, capsys, options, expected):
    if options is NOT_THERE:
        site.write_text(site.read_text() + "backbone = dict()\n")
    assert expected in refusal(capsys, "--cfg-options", *options)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--cfg-options", "stages.source.val_interval=0"], "val_interval=0"),
        (["--cfg-options", "stages.target.identities=0"], "identities=0"),
        (["--seed", "-1"], "seed=-1"),
        (["--launcher", "pytorch"], "torchrun"),
        (["--launcher", "slurm"], "SLURM_PROCID"),
        (["--launcher", "mpi"], "mpirun"),
        (["--work-dir", "config.py"], "config.py"),
    ],
)
def test_a_wrong_value_is_one_line(site, capsys, options, expected):
    assert expected in refusal(capsys, *options)


def test_a_stage_that_a_wrong_setting_stopped_is_tried_again(site, capsys):
    assert "lower the learning rate" in refusal(capsys, "--stage", "source", "--cfg-options", "stages.source.lr=1e30")
    assert train("--stage", "source") == 0
    assert "other settings" in refusal(capsys, "--stage", "source", "--cfg-options", "stages.source.lr=0.1")


def test_weights_of_another_architecture(site, capsys):
    save_checkpoint(dict(state_dict={"backbone.conv1.weight": torch.zeros(64, 3, 7, 7)}), Path("other.pth"))
    message = refusal(capsys, "--cfg-options", "stages.target.init_from=other.pth")
    assert "another architecture" in message


def test_no_such_config(site, capsys):
    assert main(["train", "confg.py"]) == 2
    assert "did you mean 'config.py'" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_logs_on_a_full_disk_print_no_traceback(monkeypatch, capfd):
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    quiet_on_a_full_disk()
    log = logging.Logger("full")
    log.addHandler(logging.StreamHandler(open("/dev/full", "w")))
    log.error("one line")
    thread = threading.Thread(target=lambda: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    thread.start()
    thread.join()
    assert capfd.readouterr().err == ""
