"""Backbones in eval mode, float32, beside timm's ResNet-50 and Swin-T in the same run.

Each job runs in a process of its own, in which model and ResNet-50 take turns, so that whatever else happens on the
machine weighs on both. ``seconds`` is the median of some forward passes after two that warm up, ``reference_seconds``
ResNet-50's, ``ratio`` the one by the other. Peak memory is the process's largest resident size before ResNet-50 is
built, libraries included. SOFT and SOFT++ are timed with Newton steps and with ``inverse="solve"``.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks._measure import measure, peak_bytes, timed

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
    parser.add_argument(
        "--models", nargs="+", choices=names, default=names, metavar="NAME", help="models to measure (default: all)"
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 512, 1024], help="pixels (default: 224 512 1024)")
    parser.add_argument("--batch", type=int, default=2, help="images at a time (default: 2)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--repeats", type=int, default=7, help="timed passes of each job (default: 7)")


def run(options: argparse.Namespace) -> list[dict]:
    """One row for each model and size; the references first."""
    check_numbers(options)
    chosen = [(name, extra) for name, extra in MODELS if name in options.models]
    rows = []
    for size in options.sizes:
        for name, extra in [*((name, {}) for name in REFERENCES), *chosen]:
            job = " ".join([name, *(f"{key}={value}" for key, value in extra.items()), str(size)])
            print(f"{job} ...", flush=True)
            passes = (size, options.batch, options.repeats)
            seconds, base, peak = measure(forward_seconds, name, extra, *passes, threads=options.threads).result
            row = dict(job=job, seconds=seconds, peak_bytes=peak, reference_seconds=base)
            rows.append(row | dict(images_per_second=options.batch / seconds, ratio=seconds / base))
    return rows


def check_numbers(options: argparse.Namespace) -> None:
    """Raises VisionKitError for a count below one or an image that is too small for every model."""
    from visionkit.errors import VisionKitError

    given = [("--batch", options.batch, 1), ("--repeats", options.repeats, 1)]
    for name, value, number in [*given, *(("--sizes", size, 32) for size in options.sizes)]:
        if value < number:
            raise VisionKitError(f"{name} {value}: expected {number} or more")


def forward_seconds(name: str, extra: dict, size: int, batch: int, repeats: int) -> tuple[float, float, int]:
    """Median times of a forward pass of a model and of ResNet-50, and the model's peak memory in bytes."""
    import timm
    import torch

    import visionkit.backbones  # noqa: F401  (registers the models)

    torch.manual_seed(0)
    extra = dict(extra, img_size=size) if name.startswith("swin") else extra
    model, image = timm.create_model(name, **extra).eval(), torch.randn(batch, 3, size, size)
    with torch.inference_mode():
        warm_up(model, image)
        peak = peak_bytes()
        reference = timm.create_model(REFERENCES[0]).eval()
        warm_up(reference, image)
        spent = [[timed(lambda each=each: each(image)).seconds for each in (model, reference)] for _ in range(repeats)]
    seconds, base = map(statistics.median, zip(*spent, strict=True))
    return seconds, base, peak


def warm_up(model: Callable, image: Any) -> None:  # noqa: ANN401
    """Two passes."""
    for _ in range(2):
        model(image)
