"""How processes join, and how a run goes on."""

import gc
import os
import weakref

import pytest
import torch

from visionkit.engine.runner import LAUNCHERS, init_distributed
from visionkit.engine.stage import build_runner, train
from visionkit.errors import VisionKitError

from .toy import runner_cfg


@pytest.mark.parametrize("launcher", ["pytorch", "mpi"])
def test_processes_with_gpus_join_by_nccl_and_wait_for_hours(launcher, monkeypatch):
    joined = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **options: joined.append(options))
    # a copy of its own: joining adds names, which later tests would find
    monkeypatch.setattr(os, "environ", dict(zip(LAUNCHERS[launcher][0], "010")))
    init_distributed(launcher)
    assert joined[0]["backend"] == "nccl" and joined[0]["timeout"].total_seconds() == 6 * 3600


def test_a_checkpoint_to_go_on_from_is_read_on_the_cpu(tmp_path, monkeypatch):
    train(runner_cfg(epochs=1), tmp_path, seed=3)
    runner = build_runner(runner_cfg(), tmp_path, seed=3)
    monkeypatch.setattr("mmengine.runner.runner.get_device", lambda: "meta")
    runner.resume(str(tmp_path / "epoch_1.pth"))
    counters = [state["step"] for state in runner.optim_wrapper.optimizer.state.values()]
    assert counters and {counter.device.type for counter in counters} == {"cpu"}


@pytest.mark.parametrize("system, method", [("linux", "fork"), ("darwin", "spawn")])
def test_loader_processes_are_not_forked_on_macos(tmp_path, monkeypatch, system, method):
    asked = []
    monkeypatch.setattr("mmengine.runner.runner.set_multi_processing", lambda **options: asked.append(options))
    monkeypatch.setattr("sys.platform", system)
    build_runner(runner_cfg(), tmp_path, seed=3)
    assert [options["mp_start_method"] for options in asked] == [method]


def test_a_run_begins_without_the_model_of_the_last(tmp_path):
    gc.disable()  # it would come by itself, some time
    try:
        last = weakref.ref(train(runner_cfg(epochs=1), tmp_path / "first", seed=3).model)
        build_runner(runner_cfg(), tmp_path / "second", seed=3)
        assert last() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "part, name, value",
    [
        ("train_cfg", "max_epochs", 0),
        ("train_cfg", "iters_per_epoch", 0),  # would not end
        ("train_cfg", "val_interval", 0),
        ("train_dataloader", "batch_size", 0),
        ("train_dataloader", "num_workers", -1),
        ("SafeCheckpointHook", "keep", 0),  # would delete what was trained
    ],
)
def test_a_count_that_no_training_can_have(tmp_path, part, name, value):
    cfg, hook = runner_cfg(epochs=1), dict(type="visionkit.SafeCheckpointHook")
    cfg["default_hooks"] = dict(checkpoint=hook)
    parts = dict(train_cfg=cfg["train_cfg"], train_dataloader=cfg["train_dataloader"]["view"], SafeCheckpointHook=hook)
    parts[part][name] = value
    with pytest.raises(
        VisionKitError, match=f"{part}: {name}={value}; expected a whole number of at least {value + 1}"
    ):
        train(cfg, tmp_path, seed=3)


def test_weights_that_a_hook_exchanged_are_written_from_the_cpu(tmp_path, monkeypatch):
    """As EMAHook does with those of its model, which is on the GPU."""

    class OnGPU:
        def cpu(self):
            return torch.ones(1)

    written = []
    runner = train(runner_cfg(epochs=1), tmp_path, seed=3)
    monkeypatch.setattr(runner, "call_hook", lambda _, checkpoint: checkpoint["state_dict"].update(mean=OnGPU()))
    monkeypatch.setattr("visionkit.engine.runner.save_checkpoint", lambda checkpoint, path: written.append(checkpoint))
    runner.save_checkpoint(tmp_path / "epoch_1.pth")
    assert torch.equal(written[0]["state_dict"]["mean"], torch.ones(1))
