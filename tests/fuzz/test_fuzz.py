"""Damaged files end in one clear line: no traceback, no hang, no memory blow-up, no code that runs."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from visionkit.engine.checkpoints import load_checkpoint
from visionkit.errors import VisionKitError

TESTS = Path(__file__).resolve().parents[1]
FEW = dict(checkpoints=500, indexes=300, images=800, configs=60, captures=400)  # 2060 together
MANY = dict(checkpoints=3000, indexes=1500, images=5000, configs=600, captures=2000)


def fuzz(kind, count, seed, folder):
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS.parent / "kernels", TESTS)))
    command = [sys.executable, str(TESTS / "fuzz" / "fuzzer.py"), kind, str(folder), str(count), str(seed)]
    environment = dict(os.environ, PYTHONPATH=paths, OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-2000:]}"
    failures = json.loads(done.stdout.splitlines()[-1])
    assert not failures, f"{len(failures)} of {count} {kind}: input {next(iter(failures))}:\n" + next(
        iter(failures.values())
    )


@pytest.mark.parametrize("kind", FEW)
def test_damaged_files_are_refused_in_one_line(kind, tmp_path):
    fuzz(kind, FEW[kind], "few", tmp_path / kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MANY)
def test_many_damaged_files(kind, tmp_path):
    fuzz(kind, MANY[kind], "many", tmp_path / kind)


class Runs:
    """A pickle that calls a function when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("format", ["zip", "old", "pickle"])
@pytest.mark.parametrize(
    "function, name", [(os.system, "posix.system"), (eval, "builtins.eval"), (subprocess.Popen, "subprocess.Popen")]
)
def test_a_pickle_that_would_run_something_is_refused_by_name(tmp_path, function, name, format):
    mark = tmp_path / "it_ran"
    code = f"open({str(mark)!r}, 'w')" if function is eval else f"touch {mark}"
    content = dict(state_dict=Runs(function, code), meta=dict(epoch=1))
    path = tmp_path / "epoch_1.pth"
    if format == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=format == "zip")
    with pytest.raises(VisionKitError, match=f"epoch_1.pth: refused, it would run '{name}'"):
        load_checkpoint(path)
    assert not mark.exists()
