"""A run that is killed or stopped, at any moment of any stage, and given again ends as if nothing had happened."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from reid_trees import duke_name, market_name, write_duke, write_image, write_market

from visionkit.engine.checkpoints import load_checkpoint

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STAGES = ("camstyle", "source", "target")
KILLED = -signal.SIGKILL


class Starter:
    """Runs the config in processes of their own, see starter.py."""

    def __init__(self, data):
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", HERE.parent)))
        environment = dict(os.environ, SURVIVAL_DATA=str(data), PYTHONPATH=paths, OMP_NUM_THREADS="1")
        command = [sys.executable, str(HERE / "starter.py")]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(command, env=environment, **pipes)

    def start(self, folder, *options, **job):
        arguments = ["train", str(HERE / "config.py"), "--work-dir", str(folder), *options]
        job = dict(arguments=arguments, log=str(folder) + ".log", **job)
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self):
        return int(self.process.stdout.readline())

    def finish(self, folder, *options):
        self.start(folder, *options)
        status = self.wait()
        assert status == 0, Path(str(folder) + ".log").read_text()[-3000:]

    def cut(self, folder, stage, delay, signum, *options):
        """Send a signal some seconds after a stage began; the exit status."""
        pid = self.start(folder, *options)
        while not (folder / stage / "settings.json").is_file() and alive(pid):
            time.sleep(0.005)
        time.sleep(delay)
        if alive(pid):
            os.kill(pid, signum)
        return self.wait()


def alive(pid):
    """The starter waits for its child at once, so that an ended one is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    for root, name in ((write_market(data / "market", cams=2), market_name), (write_duke(data / "duke"), duke_name)):
        for pid in (1, 3):
            write_image(root / "query" / name(pid, 2, 950 + pid), 1000 * pid)
    starter = Starter(data)
    yield starter
    starter.process.stdin.close()
    starter.process.wait()


@pytest.fixture(scope="module")
def whole(starter, tmp_path_factory):
    """The uninterrupted run, and how long each stage took."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    starter.finish(folder)
    begun = [(folder / stage / "settings.json").stat().st_mtime for stage in STAGES]
    done = [(folder / stage / "done.json").stat().st_mtime for stage in STAGES]
    return folder, {stage: after - before for stage, before, after in zip(STAGES, begun, done)}


def left_by(folder):
    """Every file but logs, which hold times; checkpoints as what they say, without the times that mmengine keeps."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if "tensorboard" in name or re.search(r"\d{8}_\d{6}", name) or path.suffix == ".sha256":
            continue
        content = path.read_bytes()
        if path.suffix == ".pth":
            content = load_checkpoint(path)
            content.pop("message_hub", None)
        files[name] = content
    return files


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same(folder, whole):
    ours, expected = left_by(folder), left_by(whole)
    assert ours.keys() == expected.keys()
    assert [name for name in ours if not same(ours[name], expected[name])] == []


def test_the_whole_run_is_what_it_should_be(whole):
    names = left_by(whole[0]).keys()
    for name in ("camstyle/c1_c2/generators.pth", "source/epoch_4.pth", "target/best.pth", "target/history.jsonl"):
        assert name in names
    assert "target/pseudo_labels.npz" in names and "target/results.json" in names and "results.json" in names
    assert not any("_iter_" in name for name in names)


def test_kills_in_each_stage(starter, whole, tmp_path):
    assert kill_in_each_stage(starter, whole, tmp_path / "run", random.Random(0)) >= 2


def kill_in_each_stage(starter, whole, folder, random):
    killed = 0
    for stage in STAGES:
        killed += starter.cut(folder, stage, random.uniform(0, whole[1][stage]), signal.SIGKILL) == KILLED
    starter.finish(folder)
    assert_same(folder, whole[0])
    return killed


@pytest.mark.slow
def test_twenty_kills(starter, whole, tmp_path):
    generator, killed, rounds = random.Random(1), 0, 0
    while killed < 20:
        killed += kill_in_each_stage(starter, whole, tmp_path / f"run{rounds}", generator)
        rounds += 1
        assert rounds < 30


@pytest.mark.parametrize(
    "stage, what, number, file",
    [
        ("camstyle", "iteration", 5, "camstyle/c1_c2/epoch_1_iter_2.pth"),
        ("source", "iteration", 1, "source/epoch_0_iter_1.pth"),
        ("source", "iteration", 6, "source/epoch_1_iter_3.pth"),
        ("target", "iteration", 7, "target/epoch_2_iter_1.pth"),
        ("target", "validation", 4, "target/epoch_3_iter_3.pth"),
    ],
)
def test_sigterm_stops_inside_an_epoch_and_the_run_goes_on(starter, whole, tmp_path, stage, what, number, file):
    folder = started(whole, tmp_path / "run", stage)
    starter.start(folder, "--cfg-options", "workers=1", stop_at=(what, number))
    assert starter.wait() == 143
    assert (folder / file).is_file() and "goes on from the last checkpoint" in Path(f"{folder}.log").read_text()
    starter.finish(folder)  # with no worker: their number must change nothing
    assert_same(folder, whole[0])


def started(whole, folder, stage):
    """A folder in which the stages before one are finished."""
    for done in STAGES[: STAGES.index(stage)]:
        shutil.copytree(whole[0] / done, folder / done)
    return folder


@pytest.mark.slow
def test_sigterm_at_any_moment(starter, whole, tmp_path):
    generator, statuses = random.Random(2), []
    for number in range(8):
        for stage in STAGES:
            delay = generator.uniform(0, whole[1][stage])
            statuses.append(starter.cut(tmp_path / f"run{number}", stage, delay, signal.SIGTERM))
        starter.finish(tmp_path / f"run{number}")
        assert_same(tmp_path / f"run{number}", whole[0])
    assert statuses.count(143) > 10 and set(statuses) <= {0, 143}


@pytest.mark.parametrize("stage, number", [("camstyle", 9), ("source", 12), ("target", 23)])
def test_kill_between_two_writes(starter, whole, tmp_path, stage, number):
    folder = started(whole, tmp_path / "run", stage)
    assert kill_between_two_writes(starter, whole, folder, number) == KILLED


@pytest.mark.slow
def test_kill_between_any_two_writes(starter, whole, tmp_path):
    number = 0
    while kill_between_two_writes(starter, whole, tmp_path / f"run{number}", number) == KILLED:
        shutil.rmtree(tmp_path / f"run{number}")
        number += 1
    assert number > 100


def kill_between_two_writes(starter, whole, folder, number):
    starter.start(folder, die_at=number)
    status = starter.wait()
    starter.finish(folder)
    assert_same(folder, whole[0])
    return status
