"""Evaluation, neighbours and pseudo-labels on two processes equal those on one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from reid.distributed_job import job

TESTS = Path(__file__).resolve().parents[1]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def test_two_processes_equal_one(tmp_path):
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS.parent / "kernels", TESTS)))
    shared = dict(os.environ, PYTHONPATH=paths, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    command = [sys.executable, str(TESTS / "reid" / "distributed_job.py"), str(tmp_path)]
    processes = [subprocess.Popen(command, env=dict(shared, RANK=str(rank), LOCAL_RANK=str(rank))) for rank in (0, 1)]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    one = json.loads(json.dumps(job(tmp_path)))
    assert json.loads((tmp_path / "0.json").read_text()) == one
    assert json.loads((tmp_path / "1.json").read_text()) == dict(one, fused=[])
