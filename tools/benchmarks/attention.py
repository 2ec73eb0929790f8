"""Every attention of the library by mask and length: time, peak memory and distance from exact softmax attention.

Lengths ascend, forward only; on the CPU each mechanism runs in a process of its own. ``cpu_seconds`` tell on a busy
machine what a run would take (on a GPU: the seconds); ``seconds`` is the best of some runs, of one where that takes
long. ``peak_bytes`` is what a run adds to the process (or allocates on the GPU). ``error`` is |y - exact| / |exact| of
64 queries, where exact is softmax attention under the same mask in float64: mechanisms that are no estimate of softmax
differ by their nature. ``exponent`` is the slope of log time over log length from 4096 to 65536 tokens.
``reference_seconds`` is the time of softmax under that mask. A length is left out when it would take longer than
``--limit``, going by the length before; with ``--budget`` also when the mechanism's equal share of it is spent. The
first row of a device tells date, commit, machine and versions.
"""

import argparse
import ctypes
import math
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks._measure import measure, peak_bytes

FIT = 4096, 65536
LONG = 1.0  # seconds of a run that is not done twice
ROWS = 64
OPTIONS = dict(landmark=dict(retrieve=8))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tools/benchmark.py attention``."""
    parser.add_argument("--ops", default="all", help="names, separated by commas (default: all)")
    parser.add_argument("--masks", default="full,causal,window,block", help="masks, separated by commas (default: all)")
    parser.add_argument("--lengths", default="256..131072", help="FROM..TO in powers of two, or a list with commas")
    parser.add_argument(
        "--window", type=int, default=256, help="size of the masks window and block in tokens (default: 256)"
    )
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--dim", type=int, default=64, help="channels of a head")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--limit", type=float, default=30.0, help="seconds that one call may take (default: 30)")
    parser.add_argument(
        "--device", default="all", choices=("all", "cpu", "cuda"), help="where to measure (default: all)"
    )
    parser.add_argument(
        "--budget", type=float, default=math.inf, help="seconds for all rows of a device (default: no limit)"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plots", metavar="FOLDER", help="write time.png and memory.png there")


def run(options: argparse.Namespace) -> list[dict]:
    """Rows of every device, mechanism and mask; those not supported say so."""
    import torch

    from visionkit.errors import VisionKitError
    from visionkit.ops.attention import MASKS, attention_names, mechanism

    names = attention_names() if options.ops == "all" else options.ops.split(",")
    masks, lengths = options.masks.split(","), parse_lengths(options.lengths)
    for mask in masks:
        if mask not in MASKS:
            raise VisionKitError(f"--masks {mask}: expected some of {', '.join(MASKS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise VisionKitError("--device cuda: PyTorch finds no GPU here; use --device cpu")
    found = ["cpu", "cuda"][: 1 + torch.cuda.is_available()]
    names = list(dict.fromkeys(["softmax", *names])) if "softmax" in names else names
    rows = []
    for device in found if options.device == "all" else [options.device]:
        rows.append(dict(job="about", device=device, note=about(device, options)))
        end = time.monotonic() + options.budget
        for i, name in enumerate(names):
            known = [mask for mask in masks if mask in mechanism(name).masks]
            settings = (name, known, lengths, device, options.dtype, options.window, options.heads, options.dim)
            share = max(0.0, end - time.monotonic()) / (len(names) - i)
            try:
                done = _apart(sweeps, *settings, options.limit, share, threads=options.threads, device=device)
            except RuntimeError as error:  # a process that was ended must not cost the rows of the others
                failed = dict(op=name, device=device, note=f"failed: {error}")
                done = [dict(failed, job=f"{name} {mask}", mask=mask) for mask in known]
            for mask in masks:
                of_mask = [row for row in done if row["mask"] == mask]
                unknown = dict(job=f"{name} {mask}", op=name, mask=mask, device=device, note="not supported")
                rows += of_mask or [unknown]
                print(f"{device} {name} {mask}: " + (", ".join(map(_brief, of_mask)) or "not supported"), flush=True)
    add_references(rows)
    if options.plots:
        plot(rows, Path(options.plots))
    return rows


def parse_lengths(text: str) -> list[int]:
    """``256..1024`` -> [256, 512, 1024]; ``300,500`` -> [300, 500]."""
    from visionkit.errors import VisionKitError

    try:
        if ".." in text:
            low, high = (int(part) for part in text.split(".."))
            lengths = [low * 2**i for i in range(64) if low * 2**i <= high]
        else:
            lengths = sorted(int(part) for part in text.split(","))
    except ValueError:
        lengths = []
    if not lengths or lengths[0] < 1:
        raise VisionKitError(f"--lengths {text}: expected FROM..TO or numbers with commas, e.g. 256..4096")
    return lengths


def about(device: str, options: argparse.Namespace) -> str:
    """Date, commit, machine, versions and setting in one line."""
    import torch
    from studies.about import about_run

    run = about_run()
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{run['machine']}, {options.threads} thread(s)"
    setting = f"{options.heads} head(s) of {options.dim}, {options.dtype}, window {options.window}"
    return f"{run['date']}, commit {run['commit']}, {machine}, Python {run['python']}, torch {run['torch']}, {setting}"


def sweeps(name: str, masks: list, *settings: object) -> list[dict]:
    """All masks and lengths of one mechanism; the last setting is the seconds for all."""
    *settings, budget = settings
    end = time.monotonic() + budget
    rows = []
    for i, mask in enumerate(masks):
        share = max(0.0, end - time.monotonic()) / (len(masks) - i)
        rows += sweep(name, mask, *settings, share)
    return rows


def _apart(function: Callable, *arguments: object, threads: int, device: str) -> object:
    """Calls a function in a process of its own: forked where no GPU is, which spares loading the libraries again.

    What a GPU allocates is told apart without that, and a start there takes seconds.
    """
    import torch

    if device == "cuda":
        return function(*arguments)
    if torch.cuda.is_available() or "fork" not in multiprocessing.get_all_start_methods():
        return measure(function, *arguments, threads=threads).result
    torch.set_num_threads(threads)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function(*arguments)))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"{arguments[0]}: ended without a result; out of memory?") from None
    finally:
        process.join()


def sweep(
    name: str,
    mask: str,
    lengths: list,
    device: str,
    dtype: str,
    window: int,
    heads: int,
    dim: int,
    limit: float,
    budget: float,
) -> list[dict]:
    """All lengths of one mechanism under one mask."""
    import torch

    from visionkit.ops.attention import attend, mechanism

    torch.manual_seed(0)
    learned = {key: x.to(device) for key, x in mechanism(name).parameters(heads, dim).items()}
    options = learned | OPTIONS.get(name, {})
    rows = []
    end = time.monotonic() + budget
    with torch.no_grad():
        for n in lengths:
            row = dict(job=f"{name} {mask} {n}", op=name, mask=mask, device=device, tokens=n)
            if (expected := _forecast(rows, n)) > limit:
                rows.append(row | dict(note=f"left out: about {expected:.2g} s"))
                break
            if time.monotonic() > end:
                rows.append(row | dict(note="left out: the budget is spent"))
                break
            q, k, v = (torch.randn(1, heads, n, dim, device=device).to(getattr(torch, dtype)) for _ in range(3))
            call = lambda q=q, k=k, v=v: attend(name, q, k, v, mask=mask, window=window, **options)
            try:
                if not rows or device == "cuda":  # kernels may be compiled anew for a length
                    call()
                y, seconds, cpu, peak = _best(call, device)
            except Exception as error:  # one mechanism that fails must not cost the rows of the others
                rows.append(row | dict(note=f"failed: {type(error).__name__}: {str(error).splitlines()[:1]}"))
                break
            row |= dict(seconds=seconds, cpu_seconds=cpu, peak_bytes=peak, error=_error(y, q, k, v, mask, window))
            rows.append(row)
    slope = exponent([(row["tokens"], row["cpu_seconds"]) for row in rows if "cpu_seconds" in row])
    if slope is not None:
        for row in rows:
            row["exponent"] = slope
    return rows


def _forecast(rows: list[dict], n: int) -> float:
    """CPU seconds of the next length: growing as between the last two, at most as the square."""
    if not rows:
        return 0.0
    tokens, last = rows[-1]["tokens"], rows[-1]["cpu_seconds"]
    slope = 2.0
    if len(rows) > 1 and tokens >= 4096:
        slope = min(slope, math.log(last / rows[-2]["cpu_seconds"]) / math.log(tokens / rows[-2]["tokens"]))
    return last * (n / tokens) ** slope


def _best(call, device: str) -> tuple:  # noqa: ANN001
    """Result, seconds, CPU seconds and bytes: the best of two calls, of more while they are short, of one long one."""
    import torch

    runs, spent = [], 0.0
    while not runs or (len(runs) < 2 and runs[0][1] < LONG) or (spent < 0.05 and len(runs) < 10):
        before = _reset_peak(device)
        if device == "cuda":
            torch.cuda.synchronize()
        start, cpu = time.perf_counter(), time.process_time()
        y = call()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes()
        runs.append((seconds, seconds if device == "cuda" else cpu, max(0, peak - before)))
        spent += seconds
    return y, min(r[0] for r in runs), min(r[1] for r in runs), max(r[2] for r in runs)


def _reset_peak(device: str) -> int:
    """Starts the peak anew where that can be done, and gives what is held now."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else freed memory is used again and no peak is seen
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        pass
    return peak_bytes()


def _error(y, q, k, v, mask: str, window: int) -> float:  # noqa: ANN001
    """|y - exact| / |exact| over some queries."""
    import torch

    n = q.shape[-2]
    rows = torch.linspace(0, n - 1, min(n, ROWS), device=q.device).long()
    i, j = rows[:, None], torch.arange(n, device=q.device)
    seen = dict(full=i >= 0, causal=j <= i, window=(i - j).abs() <= window, block=i // window == j // window)[mask]
    scores = q[..., rows, :].double() @ k.double().mT / math.sqrt(q.shape[-1])
    exact = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v.double()
    return ((y[..., rows, :].double() - exact).norm() / exact.norm()).item()


def exponent(points: list[tuple[int, float]]) -> float | None:
    """Slope of log seconds over log tokens, by least squares, from 4096 to 65536; None for fewer than three."""
    points = [(math.log(n), math.log(t)) for n, t in points if FIT[0] <= n <= FIT[1] and t > 0]
    if len(points) < 3:
        return None
    mean_x, mean_y = (sum(p[i] for p in points) / len(points) for i in (0, 1))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def add_references(rows: list[dict]) -> None:
    """Softmax's seconds beside those of each row of the same mask, length and device."""
    where = lambda row: (row["device"], row["mask"], row.get("tokens"))
    rows = [row for row in rows if "op" in row]
    softmax = {where(row): row.get("seconds") for row in rows if row["op"] == "softmax"}
    for row in rows:
        row["reference_seconds"] = softmax.get(where(row))


def _brief(row: dict) -> str:
    told = f"{row['cpu_seconds']:.3g} s" if "cpu_seconds" in row else row["note"]
    return f"{row['tokens']} {told}" if "tokens" in row else told


def plot(rows: list[dict], folder: Path) -> None:
    """Time and memory over length, a panel for each mask of each device, in folder/time.png and folder/memory.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from visionkit.files import beside

    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in rows if "op" in row]
    ops = list(dict.fromkeys(row["op"] for row in rows))
    shown = list(dict.fromkeys((row["device"], row["mask"]) for row in rows))
    for key, title, scale in (("cpu_seconds", "seconds", 1), ("peak_bytes", "MiB", 2**-20)):
        figure, panels = plt.subplots(1, len(shown), figsize=(4.5 * len(shown), 5), sharey=True, squeeze=False)
        for panel, (device, mask) in zip(panels[0], shown):
            of_panel = [row for row in rows if (row["device"], row["mask"]) == (device, mask) and row.get(key)]
            for i, op in enumerate(ops):
                if of_op := [row for row in of_panel if row["op"] == op]:
                    x, y = zip(*((row["tokens"], row[key] * scale) for row in of_op))
                    style = dict(color=plt.cm.tab20(i % 20), linestyle="-" if op != "softmax" else "--")
                    panel.loglog(x, y, marker=".", label=op, **style)
            panel.set_title(f"{device}, {mask}")
            panel.set_xlabel("tokens")
            panel.legend(fontsize=6, ncols=2)
        panels[0][0].set_ylabel(title)
        name = "time" if key == "cpu_seconds" else "memory"
        figure.tight_layout()
        with beside(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=110)
        plt.close(figure)
