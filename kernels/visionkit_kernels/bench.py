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
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from visionkit_kernels import tiles

Run = Callable[..., Tensor]
DEVICE = "cuda"
# batch, heads, and the image in tokens; the targets speak of the first and the fourth
SHAPES = [(64, 1, (56, 56)), (64, 2, (28, 28)), (1, 1, (250, 268)), (8, 16, (128, 128))]
SHAPES += [(8, 16, (64, 64)), (1, 16, (256, 512)), (8, 16, (32, 32))]
MAIN = SHAPES[0], SHAPES[3]


class Case(NamedTuple):
    """One operation at one shape.

    inputs: makes fresh random leaves. run: the operation on them. sdpa: softmax attention on them, or None.
    bytes: of each input read once and the output written once. flops: of the forward pass. compiled: whether to time
    ``torch.compile`` too, which takes seconds to start. reference_waits: the PyTorch form reads numbers back from the
    device, so that no graph can hold it; some versions of PyTorch do not recover from trying.
    """

    op: str
    job: str
    inputs: Callable[[], list[Tensor]]
    run: Run
    sdpa: Run | None = None
    bytes: int = 0
    flops: float = 0.0
    compiled: bool = False
    training: bool = True
    reference_waits: bool = False


def heads(
    batch: int, count: int, tokens: int, dim: int, tensors: int = 3, dtype: torch.dtype = torch.bfloat16
) -> Callable:
    """Makes q, k, v, or more such, as a model has them: views of (B, N, heads, dim)."""
    new = lambda: torch.randn(batch, tokens, count, dim, device=DEVICE, dtype=dtype).transpose(1, 2)
    return lambda: [new().requires_grad_() for _ in range(tensors)]


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention by FlashAttention-2."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v)


def attention_case(
    op: str, shape: tuple, run: Run, compiled: bool = False, dim: int = 64, dtype: torch.dtype = torch.bfloat16
) -> Case:
    """An attention, beside softmax attention: by FlashAttention-2, but for float32, which that does not take."""
    batch, count, (height, width) = shape
    size, half = (batch, count, height * width, dim), dtype == torch.bfloat16
    job = " x ".join(map(str, size)) + ("" if half else ", fp32")
    softmax = flash if half else F.scaled_dot_product_attention
    return Case(
        op, job, heads(*size, dtype=dtype), run, softmax, 4 * dtype.itemsize * math.prod(size), compiled=compiled
    )


def rotary_of(shape: tuple, dim: int = 64, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, ...]:
    """Tables as a model keeps them."""
    from visionkit.ops import rotary_pairs, rotary_table_2d

    table = rotary_table_2d(*shape[-1], dim, device=DEVICE, dtype=dtype)
    return *table, rotary_pairs(*table)


def mala_cases() -> Iterator[Case]:
    """MALA, where the targets are also with a local branch and a gate."""
    from visionkit.ops import mala_attention

    for shape in SHAPES:
        table = rotary_of(shape)
        run = lambda *x, table=table, **gating: mala_attention(*x, rotary=table, **gating)
        case = attention_case("mala", shape, run, shape in MAIN)
        yield case
        if shape in MAIN:
            batch, count, (height, width) = shape
            yield from gated_cases(case.job, heads(batch, count, height * width, 64, 5), run, case.bytes * 6 // 4)


def linear_cases() -> Iterator[Case]:
    """Linear attention."""
    from visionkit.ops.attention import attend

    for shape in (SHAPES[0], *SHAPES[2:]):
        yield attention_case("linear", shape, lambda *x: attend("linear", *x), shape in MAIN)


def wide_cases() -> Iterator[Case]:
    """MALA and linear attention, a head of 128 channels."""
    from visionkit.ops import mala_attention
    from visionkit.ops.attention import attend

    for dtype in (torch.bfloat16, torch.float32):
        sizes = dict(dim=128, dtype=dtype)
        table = rotary_of(SHAPES[0], **sizes)
        run = lambda *x, table=table: mala_attention(*x, rotary=table)
        yield attention_case("mala", SHAPES[0], run, compiled=True, **sizes)
        yield attention_case("linear", SHAPES[0], lambda *x: attend("linear", *x), **sizes)


def nala_cases() -> Iterator[Case]:
    """NaLa."""
    from visionkit.ops import nala_attention

    for shape in SHAPES[:2]:
        table = rotary_of(shape)
        run = lambda *x, table=table: nala_attention(*x, rotary=table)
        yield attention_case("nala", shape, run, shape in MAIN)


def gated_cases(job: str, inputs: Callable, mala: Run, moved: int) -> Iterator[Case]:
    """MALA, then a local branch added and a gate multiplied: in its last pass, and in passes of their own."""
    together = lambda q, k, v, local, gate: mala(q, k, v, local=local, gate=gate)
    apart = lambda q, k, v, local, gate: (mala(q, k, v) + local) * gate
    yield Case("mala", f"{job}, gate fused", inputs, together, bytes=moved)
    yield Case("mala", f"{job}, gate apart", inputs, apart, bytes=moved)


def sigmoid_cases() -> Iterator[Case]:
    """Sigmoid attention."""
    from visionkit.ops.attention import attend

    for dim in (64, 128):
        for tokens in (4096, 16384):
            batch = 4 if tokens == 4096 else 1
            flops = 4.0 * batch * 16 * tokens**2 * dim
            new, run = heads(batch, 16, tokens, dim), lambda *x: attend("sigmoid", *x)
            job = f"{batch} x 16 x {tokens} x {dim}"
            yield Case("sigmoid", job, new, run, flash, flops=flops, compiled=tokens == 4096)


def gaussian_cases() -> Iterator[Case]:
    """SOFT's three stages at 224 pixels, its first at 1024 with as many landmarks, and at 512 with all of its own."""
    from visionkit.ops import gaussian_attention

    stages = ((64, 2, 3136, 49), (64, 4, 784, 49), (64, 10, 196, 49), (4, 2, 65536, 49), (4, 2, 16384, 256))
    for batch, count, tokens, marks in stages:
        new = lambda batch=batch, count=count, tokens=tokens, marks=marks: [
            torch.randn(batch, count, n, 32, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
            for n in (marks, tokens, tokens)
        ]
        for inverse in {3136: ("newton", "solve"), 16384: ("solve",)}.get(tokens, ("newton",)):
            run = lambda landmarks, q, v, inverse=inverse: gaussian_attention(
                q, None, v, landmarks=landmarks, inverse=inverse
            )
            job = f"{batch} x {count} x {tokens} x 32, {marks} landmarks, {inverse}"
            soft = lambda landmarks, q, v: flash(q, q, v)  # SOFT's keys are its queries
            yield Case("gaussian", job, new, run, soft, compiled=(tokens, inverse) == (3136, "newton"))


def depthwise_cases() -> Iterator[Case]:
    """MAViT-T's: positions, the values' local branch, the feed-forward part at 224 and at 1024 pixels."""
    from visionkit.ops import depthwise_conv

    for shape, size, residual in (
        ((64, 56, 56, 64), 3, True),
        ((64, 56, 56, 64), 5, False),
        ((64, 56, 56, 224), 3, True),
        ((4, 256, 256, 224), 3, True),
    ):

        def run(x: Tensor, weight: Tensor, bias: Tensor, residual: bool = residual) -> Tensor:
            with torch.autocast(DEVICE, torch.bfloat16):
                return depthwise_conv(x, weight, bias, residual=residual)

        new = map_and_weights(shape, (shape[-1], 1, size, size), shape[-1:])
        job = f"{' x '.join(map(str, shape))}, {size} x {size}"
        yield Case("depthwise", job, new, run, bytes=4 * math.prod(shape), compiled=shape[-1] == 224)


def norm_cases() -> Iterator[Case]:
    """Before a linear layer of MAViT-T's first and third stage at 224 pixels."""
    from visionkit.ops import layer_norm

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):
            return layer_norm(x, weight, bias, 1e-6).to(x.dtype)

    for shape in ((64, 56, 56, 64), (64, 14, 14, 256)):
        new = map_and_weights(shape, shape[-1:], shape[-1:])
        yield Case("norm", " x ".join(map(str, shape)), new, run, bytes=4 * math.prod(shape), compiled=True)


def map_and_weights(shape: tuple, *weights: tuple) -> Callable:
    """Makes a map in bfloat16, and weights in float32, as training under autocast has them."""
    return lambda: [
        torch.randn(each, device=DEVICE, dtype=torch.float32 if i else torch.bfloat16).requires_grad_()
        for i, each in enumerate((shape, *weights))
    ]


def march_cases() -> Iterator[Case]:
    """NViST's field: a training step's rays, one frame, a frame of 1080 lines. Solid bumps in empty space."""
    for job, rays, dtype in (
        ("165 000 rays, bf16", 165_000, torch.bfloat16),
        ("165 000 rays, fp32", 165_000, torch.float32),
        ("160 x 90, bf16", 14_400, torch.bfloat16),
        ("1920 x 1080, bf16", 1920 * 1080, torch.bfloat16),
    ):
        new, run = march_job(rays, dtype)
        training = rays < 10**6
        yield Case("march", job, new, run, compiled=rays == 14_400, training=training, reference_waits=True)


def march_job(rays: int, dtype: torch.dtype) -> tuple[Callable, Run]:
    """Inputs and rendering of the full-size model's renderer: 48 samples, a grid of 48, 8 + 24 channels."""
    from visionkit.ops import ColourNetwork, render_vector_matrix

    new = lambda *shape, scale=1.0: (torch.randn(*shape, device=DEVICE) * scale).requires_grad_()

    def inputs() -> list[Tensor]:
        planes, vectors = new(3, 1, 32, 48, 48), new(3, 1, 32, 48, 1)
        with torch.no_grad():  # smooth, so that space is empty or full and not noise
            planes[:] = F.interpolate(torch.randn(3, 32, 6, 6, device=DEVICE), 48, mode="bicubic")[:, None] * 2
            vectors[..., 0] = F.interpolate(torch.randn(3, 32, 6, device=DEVICE), 48, mode="linear")[:, None] * 2
        network = [new(64, 72, scale=0.1), new(64), new(64, 91, scale=0.1), new(64), new(3, 64, scale=0.1), new(3)]
        return [planes, vectors, *network]

    turn = torch.rand(rays, device=DEVICE) * 6.3
    origins = torch.stack([turn.sin(), torch.rand(rays, device=DEVICE) * 0.4 - 0.2, turn.cos()], -1)[None] * 1.2
    directions = F.normalize(torch.randn(1, rays, 3, device=DEVICE) * 0.3 - origins, dim=-1)
    near, far = torch.full((1, 1), 0.4, device=DEVICE), torch.full((1, 1), 2.0, device=DEVICE)
    box = torch.tensor([[-0.8] * 3, [0.8] * 3], device=DEVICE)

    def run(planes: Tensor, vectors: Tensor, *network: Tensor) -> Tensor:
        options = dict(sigma_dim=8, num_samples=48, chunk=8192)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
            seen = render_vector_matrix(
                planes, vectors, ColourNetwork(*network), origins, directions, near, far, box, **options
            )
        return torch.cat([seen.rgb, seen.depth[..., None], seen.distortion[..., None]], dim=-1)

    return inputs, run


def model_cases() -> Iterator[Case]:
    """Forward and backward of MAViT-T under bf16 autocast."""
    import timm

    import visionkit.backbones  # noqa: F401  registers the models

    for batch, size in ((64, 224), (4, 1024)):
        model = timm.create_model("mavit_tiny", drop_path_rate=0.0).to(DEVICE).train()

        image = torch.randn(batch, 3, size, size, device=DEVICE)
        new = lambda model=model: list(model.parameters())

        def run(*_: Tensor, model: torch.nn.Module = model, image: Tensor = image) -> Tensor:
            with torch.autocast(DEVICE, torch.bfloat16):
                return model(image)

        yield Case("mavit_tiny", f"{batch} images of {size} pixels", new, run, compiled=size == 224)


ATTENTIONS = ("mala", "linear", "nala", "sigmoid", "gaussian")
ROTATED = (*ATTENTIONS, "depthwise", "norm")
CASES = dict(
    march=march_cases, models=model_cases, mala=mala_cases, linear=linear_cases, wide=wide_cases, nala=nala_cases,
    sigmoid=sigmoid_cases, gaussian=gaussian_cases, depthwise=depthwise_cases, norm=norm_cases,
)  # fmt: skip


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
    except RuntimeError as error:  # want of memory among them
        row[f"{name}_failed"] = str(error).splitlines()[0][:200]
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
    parser.add_argument("--op", nargs="+", choices=CASES, default=list(CASES), help="default: all")
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

        tune.tune([op for op in tune.CASES if op in options.op])  # those that miss most by their defaults first
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
            torch.cuda.empty_cache()
    if options.json and importlib.util.find_spec("matplotlib"):
        from visionkit_kernels.plot import draw

        draw(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
