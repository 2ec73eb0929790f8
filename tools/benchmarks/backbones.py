"""Backbones in eval mode, float32, beside timm's ResNet-50 and Swin-T in the same run.

Each job runs in a process of its own. ``seconds`` is the median of some forward passes after two that warm up;
``reference_seconds`` is ResNet-50's at the same size. Peak memory is the process's largest resident size, libraries
included. SOFT and SOFT++ are timed with Newton steps and with ``inverse="solve"``.
"""

import argparse
import statistics
import time

from benchmarks._measure import Timed, measure

REFERENCES = ("resnet50", "swin_tiny_patch4_window7_224")
MODELS = (
    ("mavit_tiny", {}),
    ("mavit_small", {}),
    ("nalaformer_tiny", {}),
    ("nalaformer_small", {}),
    ("soft_tiny", {}),
    ("soft_tiny", dict(inverse="solve")),
    ("soft_small", {}),
    ("soft_small", dict(inverse="solve")),
    ("soft_norm_tiny", {}),
    ("soft_norm_tiny", dict(inverse="solve")),
    ("soft_norm_small", {}),
    ("soft_norm_small", dict(inverse="solve")),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tools/benchmark.py backbones``."""
    names = sorted({name for name, _ in MODELS})
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="NAME", help="default: all")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 512, 1024], help="default: 224 512 1024")
    parser.add_argument("--batch", type=int, default=2, help="images at a time (default: 2)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--repeats", type=int, default=7, help="timed passes of each job (default: 7)")


def run(options: argparse.Namespace) -> list[dict]:
    """One row for each model and size; the references first."""
    chosen = [(name, extra) for name, extra in MODELS if name in options.models]
    rows = []
    for size in options.sizes:
        base = None
        for name, extra in [*((name, {}) for name in REFERENCES), *chosen]:
            job = " ".join([name, *(f"{key}={value}" for key, value in extra.items()), str(size)])
            print(f"{job} ...", flush=True)
            done = measure(forward_seconds, name, extra, size, options.batch, options.repeats, threads=options.threads)
            seconds = done.result
            base = base or seconds
            row = dict(job=job, seconds=seconds, peak_bytes=done.peak_bytes, reference_seconds=base)
            rows.append(row | dict(images_per_second=options.batch / seconds, ratio=seconds / base))
    return rows


def forward_seconds(name: str, extra: dict, size: int, batch: int, repeats: int) -> Timed:
    """The median time of a forward pass."""
    import timm
    import torch

    import visionkit.backbones  # noqa: F401  (registers the models)

    torch.manual_seed(0)
    extra = dict(extra, img_size=size) if name.startswith("swin") else extra
    model, image = timm.create_model(name, **extra).eval(), torch.randn(batch, 3, size, size)
    spent = []
    with torch.inference_mode():
        for _ in range(2 + repeats):
            start = time.perf_counter()
            model(image)
            spent.append(time.perf_counter() - start)
    return Timed(statistics.median(spent[2:]), sum(spent), 0.0)
