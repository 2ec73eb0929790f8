"""Train a tiny vision transformer with each attention for the same CPU time on the same shapes.

python tools/studies/compare_attention.py --seconds 120 --json OUT

A finished mechanism is kept in the file, so that a stopped run goes on where it was.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from about import about_run
from shapes import TEST, TinyViT, accuracy, make_shapes, save_model, train
from study import keep, run_study

from visionkit.errors import VisionKitError
from visionkit.ops.attention import attention_names, mechanism


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to compare."""
    parser.add_argument("--ops", default="all", help="names, separated by commas (default: all)")
    parser.add_argument("--seconds", type=float, default=120, help="CPU seconds of training each (default: 120)")
    parser.add_argument("--seed", type=int, default=0, help="of the images and the networks (default: 0)")
    parser.add_argument("--teacher", metavar="FILE", help="write the softmax network there, for the other studies")
    parser.add_argument("--json", required=True, metavar="OUT")


def begun(options: argparse.Namespace) -> dict:
    """What the file holds, or a new result.

    Raises:
        VisionKitError: other settings made it, or it holds something else.
    """
    settings, out = dict(seconds=options.seconds, seed=options.seed), Path(options.json)
    if not out.exists():
        return dict(about_run(), **settings, rows=[])
    try:
        result = json.loads(out.read_text(encoding="utf-8"))
        found = {name: result[name] for name in settings}
    except (ValueError, KeyError, TypeError) as error:
        raise VisionKitError(f"{out}: is no result of this study; give another --json") from error
    if found != settings:
        said = " ".join(f"--{name} {value}" for name, value in found.items())
        raise VisionKitError(f"{out}: was made with {said}; give the same, or another --json")
    return result


def run(options: argparse.Namespace) -> int:
    """A row for each mechanism: test accuracy, steps, parameters of its own."""
    names = attention_names() if options.ops == "all" else options.ops.split(",")
    result = begun(options)
    data, test = make_shapes(6000, options.seed), make_shapes(TEST, options.seed + 1)
    for name in names:
        if any(row["op"] == name for row in result["rows"]):
            continue
        torch.manual_seed(options.seed)
        model = TinyViT(name)
        steps = train(model, data, options.seconds, lr=2e-3, seed=options.seed)
        if name == "softmax" and options.teacher:
            save_model(model, options.teacher)
        own = sum(x.numel() for x in mechanism(name).parameters(2, 16).values())
        row = dict(op=name, accuracy=accuracy(model, test), steps=steps, own_parameters_per_layer=own)
        keep(row, result, options.json)
    return 0


if __name__ == "__main__":
    run_study(sys.modules[__name__])
