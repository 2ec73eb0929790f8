"""Finds the fastest tiles of the kernels on the device at hand: ``python -m visionkit_kernels.tune [--op OP ...]``.

Starting at the default, one knob after another is turned and left where the operation was fastest. What cannot be
launched, or gives another result, is passed over. The finds, where a default is not the fastest, are added to
``tiles.json`` beside the kernels after every operation. Kernels use them from then on where a device of that compute
capability runs them; ``--out`` writes them elsewhere.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from visionkit_kernels import bench, bench_cases, tiles

KNOBS = {
    "linear reduce": dict(ROWS=(32, 64, 128), num_warps=(2, 4, 8), num_stages=(1, 2, 3, 4), PROGRAMS=(2, 3, 4, 8)),
    "linear apply": dict(ROWS=(32, 64, 128), num_warps=(2, 4, 8), num_stages=(1, 2, 3, 4), PROGRAMS=(2, 3, 4, 8)),
    "linear backward": dict(ROWS=(16, 32, 64), num_warps=(2, 4, 8), num_stages=(1, 2, 3), PROGRAMS=(2, 3, 4, 8)),
    "sigmoid forward": dict(KEYS=(32, 64, 128), ROWS=(64, 128), num_warps=(4, 8), num_stages=(2, 3, 4)),
    "sigmoid backward": dict(KEYS=(32, 64, 128), ROWS=(32, 64, 128), num_warps=(4, 8), num_stages=(1, 2, 3)),
    "depthwise forward": dict(CELLS=(256, 512, 1024), RUN=(8, 16, 32), num_warps=(2, 4, 8)),
    "depthwise backward": dict(CELLS=(256, 512, 1024), RUN=(8, 16, 32), num_warps=(2, 4, 8), PROGRAMS=(2, 3, 4)),
    "march forward": dict(RAYS=(16, 32, 64, 128), num_warps=(1, 2, 4, 8)),
    "march backward": dict(RAYS=(16, 32, 64, 128), num_warps=(4, 8)),
}
OPERATIONS = "mala", "linear", "sigmoid", "march", "depthwise", "wide"  # the last for what time is left
WORTH = 0.97  # a find must take at most this share of the default's time, or noise would choose
SECONDS = 240
TOLERANCE = 2e-2  # of the largest value: sums are taken in another order


def descend(start: dict, knobs: dict[str, tuple], seconds_of: Callable[[dict], float]) -> tuple[dict, float, float]:
    """The fastest of the sizes tried, its seconds, and those of the start."""
    best, first = start, seconds_of(start)
    least = first
    for knob, values in knobs.items():
        for value in values:
            trial = {**best, knob: value}
            if trial == best:
                continue
            seconds = seconds_of(trial)
            if seconds < least:
                best, least = trial, seconds
    return best, least, first


def agree(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether two results are the same but for rounding."""
    return all(
        bool(a.isfinite().all()) and float((a - b).abs().max()) <= TOLERANCE * float(b.abs().max())
        for a, b in ((a.float(), b.float()) for a, b in zip(found, expected))
    )


def tune_case(case: bench_cases.Case, known: dict[str, dict], over: Callable[[], bool]) -> Iterator[tuple[str, dict]]:
    """Yields kernel and find, what its default is to be changed by, for all that a case launches and is not known."""
    sets = bench.input_sets(case)
    forward = bench.forward_call(case.run)
    step = bench.step_call(case.run, sets[0]) if case.training else forward
    with tiles.recorded() as asked:
        step(sets[0])
    for key, default in asked.items():
        knobs = next((knobs for name, knobs in KNOBS.items() if key.startswith(name)), None)
        if knobs is None or key in known or over():
            continue
        call = step if "backward" in key else forward
        expected = call(sets[0])

        def seconds_of(sizes: dict, key: str = key, call: Callable = call, expected: list[Tensor] = expected) -> float:
            if over():
                return math.inf
            with tiles.forced({**known, key: sizes}):
                try:
                    if not agree(call(sets[0]), expected):
                        return math.inf
                    return bench.median_seconds([lambda each=each: call(each) for each in sets])[0]
                except Exception:  # too much shared memory, or no way to compile it
                    return math.inf

        best, least, first = descend(default, knobs, seconds_of)
        print(f"{key:40} {1e3 * first:9.3f} ms -> {1e3 * least:9.3f} ms  {best}", flush=True)
        worth = least <= WORTH * first
        yield key, {knob: value for knob, value in best.items() if worth and value != default[knob]}


def run(operations: list[str], seconds: float) -> Iterator[dict[str, dict]]:
    """Yields the finds for all kernels known after each of these operations, as long as there is time.

    A case that fails says so; it hides no other.
    """
    from visionkit.ops import dispatch

    started, known = time.perf_counter(), {}
    over = lambda: time.perf_counter() - started > seconds
    for operation in operations:
        for case in bench.cases_of(operation):
            if over():
                break
            try:
                with dispatch.use_kernels("triton"):
                    known.update(tune_case(case, known, over))
            except Exception as error:
                print(f"{case.op} {case.job}: {type(error).__name__}: {error}"[:500], file=sys.stderr, flush=True)
        yield known


def write(path: Path, architecture: str, found: dict[str, dict]) -> None:
    """Adds to what the file holds; a kernel whose default is the fastest leaves it."""
    content = json.loads(path.read_text()) if path.exists() else {}
    finds = {**content.get(architecture, {}), **found}
    content[architecture] = {key: find for key, find in finds.items() if find}
    bench.write(path, content)
    tiles.read.cache_clear()


def tune(operations: list[str], out: Path = tiles.FILE, seconds: float = SECONDS) -> None:
    """Adds the finds for these operations on the device at hand to a file."""
    for found in run(operations, seconds):
        write(out, tiles.architecture(torch.device("cuda")), found)


def main(arguments: list[str] | None = None) -> int:
    """Prints a line a kernel, then writes the file."""
    parser = argparse.ArgumentParser(prog="python -m visionkit_kernels.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--op", nargs="+", choices=OPERATIONS, default=list(OPERATIONS), help="default: all")
    parser.add_argument("--out", type=Path, default=tiles.FILE, help="default: tiles.json beside the kernels")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"try nothing new after so long (default: {SECONDS})"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: tuning needs a CUDA device, and none is at hand", file=sys.stderr)
        return 2
    tune(options.op, options.out, options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
