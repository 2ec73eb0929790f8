"""What the studies share: their command line, training for a given time, and results that are kept."""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import torch
from torch import Tensor, nn

from visionkit.checks import check_above
from visionkit.cli import Parser, run_command
from visionkit.files import check_writable, write_text

WRITTEN_LAST = ("json", "maps")  # options


def run_study(study: ModuleType, arguments: list[str] | None = None) -> NoReturn:
    """Runs a script's ``run(options)`` in one thread, with the options of its ``add_arguments(parser)``.

    Ends with its exit status: 2, after one line, where an input is wrong.
    """
    parser = Parser(description=study.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    study.add_arguments(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    def run(options: argparse.Namespace) -> int:
        for name, value in vars(options).items():
            if name.endswith("seconds"):
                check_above("", 0, **{f"--{name.replace('_', '-')}": value})
        for name in WRITTEN_LAST:
            if path := getattr(options, name, None):
                check_writable(path, f"--{name}")
        return study.run(options)

    sys.exit(run_command(run, options))


def fit(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[], Tensor],
    seconds: float,
    rate: float = 2e-3,
    decay: float = 1e-3,
    warm_up: int = 1,
    clip: float = math.inf,
) -> int:
    """AdamW steps on ``loss()`` for so many CPU seconds of this process, so that a busy machine changes nothing.

    Args:
        parameters: those to train.
        loss: draws a batch and computes its loss.
        seconds: how long.
        rate: the highest learning rate; it falls as a cosine to 0.
        decay: of the weights.
        warm_up: steps in which the rate rises.
        clip: the largest norm of the gradient.

    Returns:
        The number of steps.
    """
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=decay)
    start, steps, spent = time.process_time(), 0, 0.0
    while spent < seconds:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (steps + 1) / warm_up) * (0.5 + 0.5 * math.cos(math.pi * spent / seconds))
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        steps += 1
        spent = time.process_time() - start
    return steps


def keep(row: dict, result: dict, path: str | None) -> None:
    """Adds a row to a result, prints it, and writes the result anew where a path is given."""
    result["rows"].append(row)
    print(row, flush=True)
    if path:
        write_json(path, result)


def write_json(path: str | Path, content: object) -> None:
    """Writes a whole file or none; its folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")
