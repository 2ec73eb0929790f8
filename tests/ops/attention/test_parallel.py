"""Attention over tokens of several processes equals that of one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def run(processes, *more):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    paths = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (HERE.parents[2], HERE.parents[1]))))
    command = [sys.executable, str(HERE / "parallel_job.py"), str(processes), port, *more]
    done = subprocess.run(command, env=paths, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_equal_one(processes):
    run(processes)


@pytest.mark.slow  # 20 CPU seconds a process before PyTorch's first ring turns
def test_ring_equals_one_process():
    run(torch.cuda.device_count() or 2, "ring")
