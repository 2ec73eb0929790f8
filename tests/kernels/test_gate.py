"""Every kernel compiles to machine code for devices that are not here, within their limits."""

import json
import os
import subprocess
import sys

import pytest

triton = pytest.importorskip("triton")

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one program may use
QUICK = dict(
    march=["march-bf16"],
    mala=["mala-bf16-64", "mala-one-head", "mala-gated-bf16-64", "mala-gated-bf16-128", "mala-gated-fp32-128"],
    linear=["linear-bf16-64", "norm-fp16-32"],
    sigmoid=["sigmoid-bf16-64", "sigmoid-bf16-128"],
    maps=["depthwise-bf16-3", "depthwise-gelu-bf16-3", "layer-norm-bf16-64", "rotary-bf16-64"],
    others=["gaussian-bf16-32", "matrices", "nala-bf16-32"],
)
# Whose work is cut so that all programs run at once, as Triton 3.8 compiles them: those left over would take as long
# again.
AT_ONCE = ["mala-bf16-64", "mala-one-head", "mala-gated-bf16-64", "linear-bf16-64", "gaussian-bf16-32", "nala-bf16-32"]
# every kernel that a case launches, of all cases and of some; whether all launches fuse products and sums
KERNELS = """
import sys
from visionkit_kernels.gate import CASES
launches = {name: case() for name, case in CASES.items()}
for cases in (CASES, sys.argv[1:]):
    print(*sorted({launch.kernel.__name__ for case in cases for launch in launches[case]}))
print(all(launch.options["enable_fp_fusion"] for case in launches.values() for launch in case))
"""


def without_interpreter(*arguments):
    """Lines that Python prints which compiles, and does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [os.path.join(os.getcwd(), "kernels"), environment.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-W", "ignore", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def compiled(*arguments):
    """Rows of the gate."""
    return [json.loads(line) for line in without_interpreter("-m", "visionkit_kernels.gate", "--json", *arguments)]


def test_usual_configurations_are_of_every_kernel_and_fused_whatever_triton_does_of_itself():
    every, usual, fused = without_interpreter("-c", KERNELS, *sum(QUICK.values(), []))
    assert usual == every != "" and fused == "True"


@pytest.mark.parametrize("cases", QUICK.values(), ids=QUICK)
def test_usual_configurations_compile(cases):
    rows = compiled("--case", *cases)
    check(rows)
    for row in rows if triton.__version__.startswith("3.8.") else ():
        if row["case"] in AT_ONCE and row["architecture"] == 90:
            assert row["programs"] <= 132 * programs_at_once(row), row
        if row["kernel"] == "march_backward" and row["architecture"] == 90:
            # 223 where threads exchange what each use makes of a value, and not the value
            assert row["barriers"] <= 64, row


@pytest.mark.slow
def test_all_configurations_compile():
    check(compiled())


def programs_at_once(row):
    """For how many a multiprocessor of compute capability 9.0 has registers, given out by eight, and shared memory."""
    registers = -(-row["registers"] // 8) * 8 * 32 * row["warps"]
    return min(65536 // registers, 228 * 1024 // (row["shared"] + 1024))


def check(rows):
    assert {row["architecture"] for row in rows} == set(SHARED)
    for row in rows:
        print(row)
        assert row["shared"] <= SHARED[row["architecture"]], row
        assert row["stack"] <= row["stack_allowed"], row


def test_an_architecture_that_no_kernel_is_for_is_told(capsys):
    from visionkit_kernels.gate import main

    with pytest.raises(SystemExit, match="2"):
        main(["--architecture", "90", "12"])
    assert "--architecture 12: expected 80 or more" in capsys.readouterr().err
