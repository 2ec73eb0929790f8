"""Every kernel compiles to machine code for devices that are not here, within their limits."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one program may use
QUICK = ["march-bf16", "mala-bf16-64", "mala-gated-bf16-64", "sigmoid-bf16-64", "gaussian-bf16-64", "nala-bf16-32"]


def compiled(*arguments):
    """Rows of the gate, from a process that does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [os.path.join(os.getcwd(), "kernels"), environment.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-W", "ignore", "-m", "visionkit_kernels.gate", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("case", QUICK)
def test_usual_configurations_compile(case):
    check(compiled("--case", case))


@pytest.mark.slow
def test_all_configurations_compile():
    check(compiled())


def check(rows):
    assert {row["architecture"] for row in rows} == set(SHARED)
    for row in rows:
        print(row)
        assert row["shared"] <= SHARED[row["architecture"]], row
        assert row["stack"] <= row["stack_allowed"], row
