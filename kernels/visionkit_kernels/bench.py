"""Times every operation on a CUDA device: ``python -m visionkit_kernels.bench [--op OP ...] [--json OUT]``.

Medians of device events after warm-up, beside the PyTorch form, the same under ``torch.compile``, and
``scaled_dot_product_attention`` at the same shape. All forms run as captured graphs, over several sets of inputs that
no cache holds, so that Python's time stays out; a form that cannot be captured is timed call by call (``eager``).
Ceilings, a large copy and a large matrix product, are measured in the same run. Needs visionkit for the PyTorch forms.
"""

import argparse
import contextlib
import datetime
import functools
import gc
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import triton
from torch import Tensor

from visionkit_kernels import tiles
from visionkit_kernels.bench_cases import CASES, DEVICE, ROTATED, Case, Run

SETS_BYTES = 200 * 2**20  # more than any cache holds
REPLAYS = 7


def median_seconds(calls: list[Callable], graph: bool = True) -> tuple[float, bool]:
    """Median seconds of a call, by device events, and whether the calls were captured as a graph."""
    try:
        if graph:
            return _graph_seconds(calls), True
    except RuntimeError:
        torch.cuda.synchronize()
    return triton.testing.do_bench(calls[0], warmup=10, rep=40, return_mode="median") / 1e3, False


def _graph_seconds(calls: list[Callable]) -> float:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2] * 2:
            call()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
        spent = []
        for _ in range(REPLAYS + 1):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            spent.append(start.elapsed_time(end))
    del graph
    return sorted(spent[1:])[REPLAYS // 2] / len(calls) / 1e3


def passes(run: Run, sets: list[list[Tensor]], training: bool, graph: bool = True) -> dict[str, float]:
    """Seconds of the forward pass, of both passes, of the backward pass; peaks of memory beyond the inputs."""
    forward, each = forward_call(run), lambda call: [functools.partial(call, inputs) for inputs in sets]
    found = dict(peak_bytes=_peak(each(forward)[0]))
    found["seconds"], captured = median_seconds(each(forward), graph)
    if training:
        step = step_call(run, sets[0])
        found["step_peak_bytes"] = _peak(each(step)[0])
        found["step_seconds"], captured = median_seconds(each(step), graph)
        found["backward_seconds"] = found["step_seconds"] - found["seconds"]
    if not captured:
        found["eager"] = True
    return found


def forward_call(run: Run) -> Callable[[list[Tensor]], list[Tensor]]:
    """The forward pass as a function of its inputs."""

    def forward(inputs: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [run(*inputs)]

    return forward


def step_call(run: Run, inputs: list[Tensor]) -> Callable[[list[Tensor]], list[Tensor]]:
    """Both passes as a function of inputs like these; it gives their gradients, None for what is not used."""
    grad = torch.randn_like(forward_call(run)(inputs)[0])
    return lambda inputs: list(torch.autograd.grad(run(*inputs), inputs, grad, allow_unused=True))


def input_sets(case: Case) -> list[list[Tensor]]:
    """Inputs of a case, several where one operation must not find them in a cache."""
    sets = [case.inputs()]
    nbytes = sum(x.nbytes for x in sets[0])
    return sets + [case.inputs() for _ in range(min(7, SETS_BYTES // nbytes)) if case.op in ROTATED]


def _peak(call: Callable) -> int:
    call()  # workspaces of libraries are theirs
    torch.cuda.synchronize()
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() - before


def measure(case: Case, ceilings: dict[str, float], compiled: bool) -> dict:
    """One row."""
    from visionkit.ops import dispatch

    sets = input_sets(case)
    row = dict(op=case.op, job=case.job)
    with dispatch.use_kernels("triton" if case.op in ROTATED else "auto"):
        row.update(passes(case.run, sets, case.training))
    with dispatch.use_kernels("torch"):
        how = case.training, not case.reference_waits
        with failure_told(row, "reference"):
            row.update({f"reference_{name}": x for name, x in passes(case.run, sets, *how).items()})
        if case.compiled and compiled:
            with failure_told(row, "compiled"):
                torch._dynamo.reset()
                run = torch.compile(case.run, dynamic=False)
                row.update({f"compiled_{name}": x for name, x in passes(run, sets, *how).items()})
    if case.sdpa:
        with failure_told(row, "sdpa"):
            row.update({f"sdpa_{name}": x for name, x in passes(case.sdpa, sets, case.training).items()})
    if case.bytes:
        row["bytes_per_second"] = case.bytes / row["seconds"]
        row["share_of_copy"] = row["bytes_per_second"] / ceilings["copy_bytes_per_second"]
    if case.flops:
        row["flops_per_second"] = case.flops / row["seconds"]
        row["share_of_product"] = row["flops_per_second"] / ceilings["product_flops_per_second"]
    return row


@contextlib.contextmanager
def failure_told(row: dict, name: str) -> Iterator[None]:
    """A form that the device has no room for, or that cannot run, says so in its row."""
    try:
        yield
    except Exception as error:  # whatever a compiler trips over
        row[f"{name}_failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        release()


def release() -> None:
    """Gives back memory that is kept; after an error that a device does not recover from it cannot."""
    with contextlib.suppress(RuntimeError):
        torch.cuda.empty_cache()


def ceilings() -> dict[str, float]:
    """What the device reaches: bytes read and written a second, and operations a second in bfloat16."""
    source = torch.randn(2**28, device=DEVICE)
    target = torch.empty_like(source)
    copy, _ = median_seconds([lambda: target.copy_(source)])
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    product, _ = median_seconds([lambda: a @ b])
    return dict(copy_bytes_per_second=2 * source.nbytes / copy, product_flops_per_second=2 * 8192**3 / product)


def header() -> dict:
    """What the numbers depend on."""
    return dict(
        date=datetime.date.today().isoformat(),
        commit=commit(),
        device=torch.cuda.get_device_name(),
        torch=torch.__version__,
        triton=triton.__version__,
        tiles=tiles.read().get(tiles.architecture(torch.device("cuda")), {}),
    )


def commit() -> str:
    """The commit at hand; where git does not tell, as of a copy on another machine, what ``COMMIT`` says."""
    try:
        out = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True).stdout
    except OSError:  # git is not installed
        out = ""
    return out.strip() or os.environ.get("COMMIT", "unknown")


def text(row: dict) -> str:
    """A row for people."""
    ms = lambda name: f"{1e3 * row[name]:9.3f}" if name in row else "        -"
    share = row.get("share_of_copy", row.get("share_of_product"))
    peaks = [
        f"{row[name] / 2**20:9.1f}" if name in row else "        -" for name in ("peak_bytes", "reference_peak_bytes")
    ]
    columns = ["seconds", "backward_seconds", "reference_seconds", "reference_backward_seconds", "compiled_seconds"]
    return (
        f"{row['op']:10} {row['job']:44} "
        + " ".join(map(ms, [*columns, "sdpa_seconds"]))
        + (f" {100 * share:5.0f}%" if share else "      -")
        + " "
        + " ".join(peaks)
    )


def cases_of(op: str) -> Iterator[Case]:
    """An operation's cases. One that cannot be made ends them, as a case that fails when it is run."""
    try:
        yield from CASES[op]()
    except Exception as error:
        failure = error

        def inputs() -> list[Tensor]:
            raise failure

        yield Case(op, "a case that cannot be made", inputs, inputs)


def write(path: Path, content: dict) -> None:
    """Beside, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(beside, path)


def main(arguments: list[str] | None = None) -> int:
    """Prints a line a case; with ``--json`` the rows are rewritten after each."""
    parser = argparse.ArgumentParser(prog="python -m visionkit_kernels.bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--op", nargs="+", choices=CASES, default=list(CASES), metavar="OP", help=f"{', '.join(CASES)}; default: all"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows to this file, and pictures beside")
    parser.add_argument("--seconds", type=float, default=600, help="start no case after so long (default: 600)")
    parser.add_argument("--tune", action="store_true", help="first find the fastest tiles, see visionkit_kernels.tune")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: the benchmark needs a CUDA device, and none is at hand", file=sys.stderr)
        return 2
    if options.tune:
        from visionkit_kernels import tune

        tune.tune([op for op in tune.OPERATIONS if op in options.op])  # those that miss most by their defaults first
    started = time.perf_counter()
    limits = ceilings()
    content = dict(header(), **limits, rows=[])
    print(f"{content['device']}: copy {limits['copy_bytes_per_second'] / 1e12:.2f} TB/s, product "
          f"{limits['product_flops_per_second'] / 1e12:.0f} TFLOP/s", flush=True)  # fmt: skip
    print(f"{'operation':10} {'shape':44} {'ms':>9} {'backward':>9} {'torch':>9} {'backward':>9} {'compiled':>9} "
          f"{'sdpa':>9} {'share':>6} {'MiB':>9} {'torch':>9}", flush=True)  # fmt: skip
    for op in options.op:
        for case in cases_of(op):
            if time.perf_counter() - started > options.seconds:
                row = dict(op=case.op, job=case.job, failed="left out: the time was over")
            else:
                row = dict(op=case.op, job=case.job)
                try:
                    row = measure(case, limits, not options.no_compile)
                except Exception as error:  # one kernel that fails shall not hide the others
                    row["failed"] = f"{type(error).__name__}: {error}"[:500]
            print(text(row) if "failed" not in row else f"{row['op']:10} {row['job']:44} {row['failed']}", flush=True)
            content["rows"].append(row)
            if options.json:
                write(options.json, content)
            release()
    if options.json and importlib.util.find_spec("matplotlib"):
        from visionkit_kernels.plot import draw

        draw(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
