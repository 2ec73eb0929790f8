"""Compiles every kernel as it would be launched, for devices that are not there: ``python -m visionkit_kernels.gate``.

The host code runs on meta tensors and its launches are written down instead of done; each is then compiled to machine
code. What is printed, and bounded in the tests: registers of a thread, bytes of its stack (spilled registers go there),
bytes of shared memory of a program. Printed too are the programs of a launch on an H100, which where the work is cut to
fill it must have room at once, and how long the longest loop is, in machine instructions: where each byte is used once,
a kernel that needs too many of them is slower than the memory. At the barriers in it all threads of a program wait for
the last, mostly to exchange what they have.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from visionkit_kernels import tiles

ARCHITECTURES = (80, 90)
TOKENS = 56 * 56
OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion")
TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
}


class Launch(NamedTuple):
    """A kernel and what it was called with."""

    kernel: object
    arguments: dict
    options: dict
    programs: int


class Recorder:
    """Stands in for a kernel and writes down its launches."""

    def __init__(self, kernel: object, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple) -> Callable:
        def launch(*values: object, **named: object) -> None:
            options = {name: named.pop(name) for name in OPTIONS if name in named}
            arguments = {**dict(zip(self.kernel.arg_names, values)), **named}
            self.launches.append(Launch(self.kernel, arguments, options, grid[0]))

        return launch


def record(module: object, host: Callable) -> list[Launch]:
    """The launches of ``host()``, whose kernels stand in ``module``."""
    launches: list[Launch] = []
    kernels = {name: x for name, x in vars(module).items() if isinstance(x, triton.runtime.JITFunction)}
    for name, kernel in kernels.items():
        setattr(module, name, Recorder(kernel, launches))
    try:
        host()
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)
    return launches


def compile_launch(launch: Launch, architecture: int) -> dict:
    """Compiles as a first launch would, with what Triton assumes of ones, and of multiples of 16."""
    if unknown := set(launch.arguments) - {parameter.name for parameter in launch.kernel.params}:
        raise TypeError(f"{launch.kernel.__name__} has no {', '.join(sorted(unknown))}")
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        special = type(value) is int and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (special and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
            continue
        signature[parameter.name] = _type(value)
        if isinstance(value, Tensor) or (special and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    done = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options)
    registers, stack = _resources(done.asm["cubin"])
    (loop, barriers), warps = _longest_loop(done.asm["cubin"]), done.metadata.num_warps
    sizes = ("ROWS", "D") if "ROWS" in launch.arguments else ("COLUMNS", "C", "K")  # a loop takes K rows of a map
    tile = math.prod(launch.arguments.get(size, 0) for size in sizes)
    return dict(
        kernel=launch.kernel.__name__, architecture=architecture, registers=registers, stack=stack,
        shared=done.metadata.shared, warps=warps, programs=launch.programs, loop=loop,
        barriers=barriers, loop_per_element=round(loop * 32 * warps / tile, 1) if tile else None,
    )  # fmt: skip


def _type(value: object) -> str:
    if isinstance(value, Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) < 2**31 else "i64"


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread and bytes of its stack."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", _cuobjdump("-res-usage", cubin))
    return int(found[1]), int(found[2])


def _longest_loop(cubin: bytes) -> tuple[int, int]:
    """Instructions between a branch backwards and its target, of the longest loop, and barriers among them; 0 without
    one."""
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,5})\*/\s+(.*?);", _cuobjdump("-sass", cubin), re.MULTILINE)
    places = {int(place, 16): i for i, (place, _) in enumerate(lines)}
    longest = []
    for i, (_, instruction) in enumerate(lines):
        branch = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", instruction)
        if branch:
            longest = max(longest, lines[places.get(int(branch[1], 16), i) : i + 1], key=len)
    if len(longest) < 2:  # a program ends in a branch to itself
        return 0, 0
    return len(longest), sum(bool(re.search(r"\bBAR\b", instruction)) for _, instruction in longest)


def _cuobjdump(option: str, cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def _heads(dtype: torch.dtype, dim: int, count: int = 3, heads: int = 2) -> list[Tensor]:
    """q, k, v as a model has them: views of (B, N, heads, dim)."""
    return [torch.empty(64, TOKENS, heads, dim, dtype=dtype, device="meta").transpose(1, 2) for _ in range(count)]


def linear_launches(
    dtype: torch.dtype, dim: int, feature_map: str, output: str, rotary: bool, gated: bool = False, dim_v: int = 0,
    heads: int = 2,
) -> list[Launch]:  # fmt: skip
    """All four kernels, through the host code."""
    from visionkit_kernels import linear

    q, k, v, *gating = _heads(dtype, dim, 5, heads)
    v = v[..., :dim_v] if dim_v else v
    gating = gating if gated else [None] * 2
    table = torch.empty(TOKENS, dim, dtype=dtype, device="meta") if rotary else None
    options = (feature_map, output, False, 0.125, 1e-6)

    def host() -> None:
        out, *state = linear.launch_forward(q, k, v, table, *gating, *options)
        linear.launch_backward(torch.empty_like(out), q, k, v, table, *gating, *state, *options)

    return record(linear, host)


def sigmoid_launches(dtype: torch.dtype, dim: int, causal: bool = False) -> list[Launch]:
    """All three kernels, through the host code."""
    from visionkit_kernels import sigmoid

    q, k, v = _heads(dtype, dim)

    def host() -> None:
        out = sigmoid.launch_forward(q, k, v, causal)
        sigmoid.launch_backward(torch.empty_like(out), q, k, v, causal)

    return record(sigmoid, host)


def gaussian_launches(dtype: torch.dtype, dim: int, count: int) -> list[Launch]:
    """Both products and their backward."""
    from visionkit_kernels import gaussian

    q, v, grad = _heads(dtype, dim)
    landmarks, small = (torch.empty(64, 2, count, size, device="meta") for size in (dim, count))

    def host() -> None:
        _, w = gaussian.forward(landmarks, q, v, small, 0.5)
        gaussian.backward(grad, landmarks, q, v, small, w, 0.5)

    return record(gaussian, host)


def matrix_launches(count: int) -> list[Launch]:
    """Newton's steps and elimination."""
    from visionkit_kernels import matrices

    a = torch.empty(64, 2, count, count, device="meta")

    def host() -> None:
        matrices.launch_newton(a, a, 20)
        matrices.launch_inverse(a.double())

    return record(matrices, host)


def depthwise_launches(dtype: torch.dtype, size: int, channels: int, gelu: bool = False) -> list[Launch]:
    """The convolution, its transpose and the sums of its weight's gradient."""
    from visionkit_kernels import depthwise

    x = torch.empty(64, 56, 56, channels, dtype=dtype, device="meta")
    weight, bias = torch.empty(channels, 1, size, size, device="meta"), torch.empty(channels, device="meta")

    def host() -> None:
        depthwise.forward(x, weight, bias, True, gelu)
        depthwise.backward(torch.empty_like(x), x, x, weight, True, gelu)

    return record(depthwise, host)


def norm_launches(dtype: torch.dtype, dim: int) -> list[Launch]:
    """Both passes, weights in float32."""
    from visionkit_kernels import norm

    x = torch.empty(64 * TOKENS, dim, dtype=dtype, device="meta")
    weight, bias = torch.empty(2, dim, device="meta")

    def host() -> None:
        norm.forward(x, weight, bias, 1e-6, dtype)
        norm.backward(x, x, weight, 1e-6)

    return record(norm, host)


def rotary_launches(dtype: torch.dtype, dim: int) -> list[Launch]:
    """There and back."""
    from visionkit_kernels import rotary

    (x,), table = _heads(dtype, dim, 1), torch.empty(TOKENS, dim, dtype=dtype, device="meta")
    return record(rotary, lambda: [rotary.forward(x, table, back) for back in (False, True)])


def nala_launches(dtype: torch.dtype, dim: int) -> list[Launch]:
    """All four kernels, through the host code."""
    from visionkit_kernels import nala

    q, k, v = _heads(dtype, dim)
    table, options = torch.empty(TOKENS, dim, dtype=dtype, device="meta"), (3.0, 0.5, 1e-6, 1e-12)

    def host() -> None:
        out, *state = nala.launch_forward(q, k, v, table, *options)
        nala.launch_backward(torch.empty_like(out), q, k, v, table, *state, *options)

    return record(nala, host)


def march_launches(dtype: torch.dtype, kind: str, batch: int = 2, ray_gradients: bool = False) -> list[Launch]:
    """Both passes at NViST's size, through the host code."""
    from visionkit_kernels import march

    new = lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype, device="meta")
    rays, size, c, w = 14_400, 48, 32, 64
    field = new(batch, size, size, size) if kind == "vector_matrix" else new(batch, 3, size, size)
    length = size if kind == "vector_matrix" else 0
    grids = new(3, batch, size, size, c, dtype=dtype), new(3, batch, length, c, dtype=dtype)
    layers = (
        new(3, c, w, dtype=dtype), new(w), new(w, w, dtype=dtype), new(32, w, dtype=dtype), new(w),
        new(w, 16, dtype=dtype), new(16),
    )  # fmt: skip
    near = new(batch, 1).expand(batch, rays)
    seed = torch.empty((), dtype=torch.int64, device="meta")
    inputs = field, new(1), *grids, *layers, new(batch, rays, 3), new(batch, rays, 3), near, near, new(2, 3), seed
    options = 48, 4, 0.0, 24, False

    def host() -> None:
        out = march.launch_forward(*inputs, *options)
        march.launch_backward(*[torch.empty_like(x) for x in out], *out, *inputs, *options, ray_gradients)

    return record(march, host)


CASES = {
    "mala-bf16-64": lambda: linear_launches(torch.bfloat16, 64, "elu", "mala", True),
    "mala-one-head": lambda: linear_launches(torch.bfloat16, 64, "elu", "mala", True, heads=1),
    "mala-bf16-128": lambda: linear_launches(torch.bfloat16, 128, "elu", "mala", True),
    "mala-fp16-96": lambda: linear_launches(torch.float16, 96, "elu", "mala", True),
    "mala-bf16-96": lambda: linear_launches(torch.bfloat16, 96, "elu", "mala", True),
    "mala-fp32-64": lambda: linear_launches(torch.float32, 64, "elu", "mala", True),
    "mala-fp32-96": lambda: linear_launches(torch.float32, 96, "elu", "mala", True),
    "mala-fp32-128": lambda: linear_launches(torch.float32, 128, "elu", "mala", True),
    "mala-gated-bf16-64": lambda: linear_launches(torch.bfloat16, 64, "elu", "mala", True, gated=True),
    "mala-gated-bf16-128": lambda: linear_launches(torch.bfloat16, 128, "elu", "mala", True, gated=True),
    "mala-gated-fp16-96": lambda: linear_launches(torch.float16, 96, "elu", "mala", True, gated=True),
    "mala-gated-fp32-64": lambda: linear_launches(torch.float32, 64, "elu", "mala", True, gated=True),
    "mala-gated-fp32-128": lambda: linear_launches(torch.float32, 128, "elu", "mala", True, gated=True),
    "linear-bf16-64": lambda: linear_launches(torch.bfloat16, 64, "elu", "sum", False),
    "linear-fp32-64": lambda: linear_launches(torch.float32, 64, "relu", "sum", False),
    "sigmoid-bf16-64": lambda: sigmoid_launches(torch.bfloat16, 64),
    "sigmoid-bf16-128": lambda: sigmoid_launches(torch.bfloat16, 128),
    "sigmoid-fp32-64": lambda: sigmoid_launches(torch.float32, 64, causal=True),
    "gaussian-bf16-64": lambda: gaussian_launches(torch.bfloat16, 64, 49),
    "gaussian-bf16-32": lambda: gaussian_launches(torch.bfloat16, 32, 49),
    "gaussian-fp32-32": lambda: gaussian_launches(torch.float32, 32, 49),
    "gaussian-fp32-64": lambda: gaussian_launches(torch.float32, 64, 49),
    "depthwise-bf16-3": lambda: depthwise_launches(torch.bfloat16, 3, 224),
    "depthwise-gelu-bf16-3": lambda: depthwise_launches(torch.bfloat16, 3, 224, gelu=True),
    "depthwise-bf16-5": lambda: depthwise_launches(torch.bfloat16, 5, 64),
    "depthwise-fp32-5": lambda: depthwise_launches(torch.float32, 5, 64),
    "layer-norm-bf16-64": lambda: norm_launches(torch.bfloat16, 64),
    "layer-norm-bf16-320": lambda: norm_launches(torch.bfloat16, 320),
    "layer-norm-fp32-4096": lambda: norm_launches(torch.float32, 4096),
    "rotary-bf16-64": lambda: rotary_launches(torch.bfloat16, 64),
    "matrices": lambda: matrix_launches(49),
    "nala-bf16-32": lambda: nala_launches(torch.bfloat16, 32),
    "nala-fp32-64": lambda: nala_launches(torch.float32, 64),
    "march-bf16": lambda: march_launches(torch.bfloat16, "vector_matrix"),
    "march-one-scene": lambda: march_launches(torch.bfloat16, "vector_matrix", batch=1),
    "march-fp32": lambda: march_launches(torch.float32, "vector_matrix"),
    "march-planes-bf16": lambda: march_launches(torch.bfloat16, "triplanes"),
    "march-rays-bf16": lambda: march_launches(torch.bfloat16, "vector_matrix", ray_gradients=True),
    "march-rays-fp32": lambda: march_launches(torch.float32, "vector_matrix", ray_gradients=True),
    "march-rays-planes-bf16": lambda: march_launches(torch.bfloat16, "triplanes", ray_gradients=True),
    "norm-fp16-32": lambda: linear_launches(torch.float16, 32, "relu2", "rms", False),
    "norm-bf16-128": lambda: linear_launches(torch.bfloat16, 128, "relu2", "rms", False),
    "norm-fp32-128": lambda: linear_launches(torch.float32, 128, "relu2", "rms", False),
    "linear-fp32-128": lambda: linear_launches(torch.float32, 128, "elu", "sum", False),
    "linear-fp32-128-to-64": lambda: linear_launches(torch.float32, 128, "elu", "sum", False, dim_v=64),
    "norm-one-value": lambda: linear_launches(torch.bfloat16, 16, "elu", "rms", False, dim_v=1),
}


# Bytes of stack that a thread may use: none, but where a head's state nearly fills the registers.
ALLOWED_STACK = {
    "mala-bf16-64": 512,  # 40 on sm_80, 8 on sm_90
    "mala-one-head": 512,  # the same
    "mala-bf16-96": 256,
    "mala-bf16-128": 256,  # 152 on sm_90, none on sm_80, where the state's gradient has a pass of its own
    "mala-fp16-96": 64,
    "mala-fp32-64": 768,  # 344 on sm_80, 136 on sm_90
    "mala-fp32-96": 512,
    "mala-fp32-128": 512,  # 264 on both
    "mala-gated-bf16-64": 512,  # 72 on sm_80, 32 on sm_90
    "mala-gated-bf16-128": 384,  # 264 on sm_90, none on sm_80
    "mala-gated-fp16-96": 64,
    "mala-gated-fp32-64": 512,  # 224 on sm_80; 136 on sm_90
    "mala-gated-fp32-128": 512,  # 264 on both
    "norm-fp32-128": 512,  # 344 on both
    "linear-fp32-128": 512,
    "linear-bf16-64": 64,  # 40 on sm_90 by Triton 3.9, none by 3.5 to 3.8
    "linear-fp32-64": 256,
    "sigmoid-bf16-64": 64,
    "sigmoid-fp32-64": 256,
    "gaussian-bf16-64": 512,  # 376 on sm_80, 88 on sm_90
    "gaussian-bf16-32": 64,  # 32 on sm_80, 8 on sm_90
    "gaussian-fp32-32": 256,  # 200 on sm_80, 32 on sm_90
    "gaussian-fp32-64": 1024,  # 624 on sm_80; 968 on sm_90
    "matrices": 512,  # 304 on sm_80, 336 on sm_90, in the Newton steps, which hold two matrices
    "depthwise-bf16-5": 64,  # 8 on sm_90 by Triton 3.5, none by 3.8
    "layer-norm-fp32-4096": 64,  # 8 on sm_90
    "nala-bf16-32": 64,
    "nala-fp32-64": 512,  # 448 on sm_80, 144 on sm_90
    "march-bf16": 4096,  # the backward holds the gradients of a whole network; 3880 on sm_80, 2760 on sm_90
    "march-one-scene": 4096,
    "march-fp32": 12288,
    "march-planes-bf16": 6144,
    "march-rays-bf16": 5120,  # 4792 on sm_80, 3392 on sm_90
    "march-rays-fp32": 12288,
    "march-rays-planes-bf16": 6144,
}


def run(names: list[str], architectures: list[int]) -> Iterator[dict]:
    """Compiles the cases, one row a kernel and architecture, in the tiles that were found for it."""
    for name in names:
        for architecture in architectures:
            with tiles.compiling_for(architecture), tiles.forced(tiles.read().get(f"sm_{architecture}", {})):
                launches = CASES[name]()
            for launch in launches:
                yield dict(case=name, stack_allowed=ALLOWED_STACK.get(name, 0), **compile_launch(launch, architecture))


def main(arguments: list[str] | None = None) -> int:
    """Prints a table; with ``--json`` one object a line."""
    parser = argparse.ArgumentParser(prog="python -m visionkit_kernels.gate", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--case",
        nargs="+",
        choices=CASES,
        default=list(CASES),
        metavar="CASE",
        help=f"{', '.join(CASES)}; default: all",
    )
    parser.add_argument("--architecture", nargs="+", type=int, default=list(ARCHITECTURES), help="default: 80 90")
    parser.add_argument("--json", action="store_true", help="one object a line")
    options = parser.parse_args(arguments)
    if min(options.architecture) < min(ARCHITECTURES):  # LLVM ends the process over one that it does not know
        parser.error(f"--architecture {min(options.architecture)}: expected {min(ARCHITECTURES)} or more, as 90 or 120")
    if not options.json:
        print(
            f"{'case':19} {'kernel':21} {'sm':>3} {'registers':>9} {'stack':>6} {'shared':>7} {'warps':>5} "
            f"{'programs':>8} {'loop':>5} {'/ element':>9} {'barriers':>8}"
        )
    for row in run(options.case, options.architecture):
        if options.json:
            print(json.dumps(row), flush=True)
        else:
            print(
                f"{row['case']:19} {row['kernel']:21} {row['architecture']:3} {row['registers']:9} {row['stack']:6} "
                f"{row['shared']:7} {row['warps']:5} {row['programs']:8} {row['loop']:5} "
                f"{row['loop_per_element'] or '':>9} {row['barriers']:8}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
