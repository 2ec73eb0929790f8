"""Fine-tune a frozen network to another domain by p-Laplacian adapters.

python tools/studies/tune_p_adapter.py --teacher FILE --json OUT

The softmax transformer was trained on filled shapes on a dark ground; 1000 images of outlined shapes on a bright ground
are the new domain. Compared, for the same CPU time: the head alone, adapters with p = 1.25, the same with p = 2 (plain
averaging), and all parameters. Each prints how many parameters it trains.
"""

import argparse
import copy
import sys

import torch
from about import about_run
from shapes import TEST, accuracy, add_teacher, make_shapes, train, trained_teacher
from study import keep, run_study

from visionkit.backbones.adapters import add_p_adapters, trained_parameters


def head_alone(net: torch.nn.Module) -> str:
    """Freezes all else; tells how many parameters are left."""
    net.requires_grad_(False)
    net.head.requires_grad_(True)
    return trained_parameters(net)


WAYS = {  # what prepares the network, and the learning rate
    "head alone": (head_alone, 1e-2),
    "p-adapters, p = 1.25": (add_p_adapters, 1e-2),
    "p-adapters, p = 2": (lambda net: add_p_adapters(net, p=2.0), 1e-2),
    "all parameters": (trained_parameters, 1e-3),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The network, and for how long to tune it."""
    add_teacher(parser, seconds=60)
    parser.add_argument("--seconds", type=float, default=15, help="CPU seconds of each fine-tuning (default: 15)")
    parser.add_argument("--json", metavar="OUT")


def run(options: argparse.Namespace) -> int:
    """Accuracies on the new domain."""
    model = trained_teacher(options.teacher, options.teacher_seconds)
    data, test = make_shapes(1000, 3, True), make_shapes(TEST, 4, True)
    result = dict(about_run(), seconds=options.seconds, rows=[])
    result |= dict(untouched=accuracy(model, test), source=accuracy(model, make_shapes(TEST, 1)))
    print(f"untouched: {result['untouched']:.3f} on the new domain, {result['source']:.3f} on its own", flush=True)
    for name, (prepare, rate) in WAYS.items():
        torch.manual_seed(0)
        net = copy.deepcopy(model)
        line = prepare(net)
        steps = train(net, data, options.seconds, rate)
        keep(dict(way=name, parameters=line, steps=steps, accuracy=accuracy(net, test)), result, options.json)
    return 0


if __name__ == "__main__":
    run_study(sys.modules[__name__])
