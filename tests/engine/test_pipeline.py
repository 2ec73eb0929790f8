import json
import os

import pytest
import torch
from mmengine.config import Config

from visionkit.engine.checkpoints import load_checkpoint, save_checkpoint
from visionkit.engine.pipeline import Context, run_pipeline
from visionkit.engine.stage import RunnerStage, train
from visionkit.errors import VisionKitError

from .toy import ToyMetric, config, runner_cfg


def run(folder, seed=1, **options):
    options_of_run = {key: options.pop(key) for key in ("only", "resume") if key in options}
    return run_pipeline(Config(config(**options)), folder, seed=seed, **options_of_run)


def weights(folder):
    return load_checkpoint(folder)["state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_two_stages_hand_weights_on_and_report(tmp_path):
    rows = run(tmp_path)
    assert [(row["model"], row["checkpoint"]) for row in rows] == [
        ("first", "last"),
        ("first", "best"),
        ("second", "last"),
        ("second", "best"),
    ]
    assert json.loads((tmp_path / "results.json").read_text()) == rows
    history = [json.loads(line) for line in (tmp_path / "first" / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4] and "mAP" in history[1] and "mAP" not in history[0]
    assert history[-1]["loss"] < history[0]["loss"]


def test_of_equal_scores_the_first_is_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyMetric, "compute_metrics", lambda self, results: dict(mAP=1.0))
    train(runner_cfg(epochs=4), tmp_path, seed=1)
    assert load_checkpoint(tmp_path / "best.pth")["meta"]["epoch"] == 2  # validated there and at 4


def test_a_finished_stage_is_skipped_and_other_settings_are_refused(tmp_path):
    run(tmp_path)
    before = (tmp_path / "first" / "epoch_4.pth").stat().st_mtime_ns
    assert run(tmp_path) and (tmp_path / "first" / "epoch_4.pth").stat().st_mtime_ns == before
    with pytest.raises(VisionKitError, match="other settings"):
        run(tmp_path, seed=2)
    with pytest.raises(VisionKitError, match="--work-dir"):
        run(tmp_path, resume=False)
    cfg = config()
    cfg["stages"]["second"]["runner"]["best"] = "other"
    run_pipeline(Config(cfg), tmp_path, seed=1, only="first")  # what comes after it does not matter
    with pytest.raises(VisionKitError, match="second: was made with other settings"):
        run_pipeline(Config(cfg), tmp_path, seed=1)


def test_what_a_killed_report_left_goes_and_what_others_write_stays(tmp_path):
    run_pipeline(config(), tmp_path)
    own, others = tmp_path / ".results.json.9ec77d3f.tmp", tmp_path / "other" / ".results.json.9ec77d3f.tmp"
    others.parent.mkdir()
    for file in (own, others):
        file.write_text("[")
    run_pipeline(config(), tmp_path)
    assert not own.exists() and others.exists()


def test_seeds_repeat_and_differ(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / name, seed=seed)
    a, b, c = (weights(tmp_path / name / "second" / "epoch_4.pth") for name in "abc")
    assert same(a, b) and not same(a, c)


def test_an_interrupted_run_ends_in_the_same_weights_and_history(tmp_path, monkeypatch):
    train(runner_cfg(), tmp_path / "whole", seed=3)
    from .toy import ToyModel

    calls = dict(n=0)
    original = ToyModel.train_step

    def dies(self, *args, **kwargs):
        calls["n"] += 1
        if calls["n"] == 8:  # in the middle of the third epoch
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ToyModel, "train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(runner_cfg(), tmp_path / "cut", seed=3)
    train(runner_cfg(), tmp_path / "cut", seed=3)
    whole, cut = (load_checkpoint(tmp_path / name / "epoch_4.pth") for name in ("whole", "cut"))
    assert same(whole["state_dict"], cut["state_dict"])
    assert str(whole["optimizer"]) == str(cut["optimizer"])
    assert (tmp_path / "whole" / "history.jsonl").read_text() == (tmp_path / "cut" / "history.jsonl").read_text()


def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(tmp_path):
    train(runner_cfg(epochs=4), tmp_path / "whole", seed=3)
    train(runner_cfg(epochs=4), tmp_path / "cut", seed=3)
    newest = tmp_path / "cut" / "epoch_4.pth"
    newest.write_bytes(newest.read_bytes()[:-100])
    train(runner_cfg(epochs=4), tmp_path / "cut", seed=3)
    assert same(weights(tmp_path / "whole" / "epoch_4.pth"), weights(newest))


def test_a_damaged_best_checkpoint_is_left_out_of_the_results(tmp_path):
    run(tmp_path, only="first")
    best = tmp_path / "first" / "best.pth"
    best.write_bytes(best.read_bytes()[:-100])
    (tmp_path / "first" / "done.json").unlink()
    assert [row["checkpoint"] for row in run(tmp_path, only="first")] == ["last"]
    log = "".join(file.read_text() for file in best.parent.rglob("*.log"))
    assert f"the results are without the best epoch: {best}: damaged" in log


@pytest.mark.parametrize(
    "name, content",
    [
        ("done.json", "[]"),
        ("done.json", "{"),
        ("settings.json", "3"),
        ("results.json", '{"a": 1}'),
        ("results.json", "[1]"),
    ],
)
def test_a_damaged_file_of_a_stage_is_one_line(tmp_path, name, content):
    run(tmp_path, only="first")
    (tmp_path / "first" / name).write_text(content)
    with pytest.raises(VisionKitError, match=f"{name}: damaged; delete .*first and run that stage again"):
        run(tmp_path, only="first")


def test_only_needs_the_stages_before(tmp_path):
    with pytest.raises(VisionKitError, match="first before it is not finished"):
        run(tmp_path, only="second")
    run(tmp_path, only="first")
    assert not (tmp_path / "second" / "epoch_4.pth").exists()
    assert run(tmp_path, only="second")[-1]["model"] == "second"
    with pytest.raises(VisionKitError, match="did you mean 'second'"):
        run(tmp_path, only="secnd")


def test_nan_stops_and_names_the_files(tmp_path):
    with pytest.raises(VisionKitError, match="NaN or infinite in epoch 1"):
        train(runner_cfg(broken=True), tmp_path / "run", seed=1)
    saved = json.loads((tmp_path / "run" / "nonfinite_batch.json").read_text())
    assert "image_3.jpg" in saved["files"] and len(saved["files"]) == 6


def test_weights_of_another_architecture_are_refused(tmp_path):
    train(runner_cfg(epochs=1), tmp_path / "narrow", seed=1)
    with pytest.raises(VisionKitError, match="another architecture"):
        train(runner_cfg(width=5), tmp_path / "wide", seed=1, start_from=tmp_path / "narrow" / "epoch_1.pth")


def test_data_that_changed_between_a_stop_and_its_going_on_are_one_line(tmp_path):
    train(runner_cfg(epochs=1), tmp_path, seed=1)
    with pytest.raises(VisionKitError, match="epoch_1.pth: does not fit the model any more .*another --work-dir"):
        train(runner_cfg(epochs=2, width=5), tmp_path, seed=1)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(stagez={}), "unknown key 'stagez'; did you mean 'stages'"),
        (dict(stages=dict(a=dict(type="visionkit.RunerStage"))), "did you mean 'visionkit.RunnerStage'"),
        (dict(stages=dict(a=dict(type="visionkit.RunnerStage", raport="x"))), "did you mean 'report'"),
        (dict(stages=dict(a=dict(report="x"))), "has no type"),
        (dict(stages={}), "holds no stages"),
    ],
)
def test_mistakes_in_a_config_are_one_line(tmp_path, change, message):
    with pytest.raises(VisionKitError, match=message) as caught:
        run_pipeline(Config(dict(config(), **change)), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_misspelt_model_is_found_before_anything_runs(tmp_path):
    cfg = config()
    cfg["stages"]["first"]["runner"]["model"]["type"] = "visionkit.ToyModell"
    with pytest.raises(VisionKitError, match="did you mean 'visionkit.ToyModel'"):
        run_pipeline(Config(cfg), tmp_path)


def test_a_stage_starts_from_the_last_or_the_best_checkpoint(tmp_path):
    context = Context(Config(), tmp_path, 1, "none", dict(first=tmp_path))
    best = RunnerStage("second", init_from="first", init_checkpoint="best")
    with pytest.raises(VisionKitError, match="best.pth: that stage validates on nothing"):
        best._source_checkpoint(context)
    for name in ("best.pth", "epoch_1.pth"):
        save_checkpoint(dict(state_dict={}), tmp_path / name)
    assert best._source_checkpoint(context).name == "best.pth"
    assert RunnerStage("second", init_from="first")._source_checkpoint(context).name == "epoch_1.pth"
    with pytest.raises(VisionKitError, match="init_checkpoint='first'"):
        RunnerStage("second", init_checkpoint="first")


def test_a_work_folder_whose_name_is_not_utf8_is_one_line(tmp_path):
    with pytest.raises(VisionKitError, match="lies in a folder whose name is not UTF-8; choose another"):
        run(tmp_path / os.fsdecode(b"w\xff"))
    assert not list(tmp_path.iterdir())
