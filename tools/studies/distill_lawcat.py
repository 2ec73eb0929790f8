"""Turn a trained softmax vision transformer into LAWCAT, by distillation, on the shapes.

python tools/studies/distill_lawcat.py --teacher FILE --json OUT

1. A softmax network is trained (or read from --teacher).
2. Its attentions are replaced by LAWCAT; projections stay. Nothing is trained yet.
3. LAWCAT's own parameters are trained to give each layer's softmax output, everything else frozen.
4. All parameters are trained on the logits: Kullback-Leibler divergence at temperature 2, and the labels.
Beside it: plain linear attention, whose time goes to step 4 alone. Both from scratch, for the same time:
compare_attention.py. Times are CPU seconds.
"""

import argparse
import copy
import sys

import torch
from about import about_run
from shapes import TEST, accuracy, add_teacher, make_shapes, train, trained_teacher
from study import keep, run_study
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit.backbones.attention import set_attention


def layer_loss(student: nn.Module, teacher: nn.Module, image: Tensor) -> Tensor:
    """Mean over the layers of the relative squared error of the attention's output, on the teacher's tokens."""
    seen = []
    hooks = [
        block.attn.register_forward_hook(lambda layer, inputs, output: seen.append((inputs[0], output)))
        for block in teacher.blocks
    ]
    with torch.no_grad():
        teacher(image)
    for hook in hooks:
        hook.remove()
    losses = [F.mse_loss(block.attn(x), y) / y.var().clamp(min=1e-8) for block, (x, y) in zip(student.blocks, seen)]
    return sum(losses) / len(losses)


def logit_loss(student: nn.Module, teacher: nn.Module, image: Tensor, kind: Tensor) -> Tensor:
    """KL of the softened logits at temperature 2, times 4, and cross-entropy, halves."""
    logits = student(image)
    with torch.no_grad():
        target = teacher(image)
    soft = F.kl_div((logits / 2).log_softmax(-1), (target / 2).log_softmax(-1), log_target=True, reduction="batchmean")
    return (4 * soft + F.cross_entropy(logits, kind)) / 2


def distill(attention: str, teacher: nn.Module, data: tuple, test: tuple, options: argparse.Namespace) -> dict:
    """Accuracies of a copy with another attention behind the same projections, before and after each of two steps."""
    torch.manual_seed(0)
    student = set_attention(copy.deepcopy(teacher), attention)
    row = dict(attention=attention, converted=accuracy(student, test))
    own = [p for block in student.blocks for p in block.attn.core.parameters()]
    if own:
        student.requires_grad_(False)
        for p in own:
            p.requires_grad_(True)
        row["own_parameters"] = sum(p.numel() for p in own)
        fit_layers = lambda net, image, kind: layer_loss(net, teacher, image)
        with torch.no_grad():
            row["layer_error_before"] = layer_loss(student, teacher, test[0][:250]).item()
        row["layer_steps"] = train(student, data, options.layer_seconds, 5e-3, loss=fit_layers)
        with torch.no_grad():
            row["layer_error_after"] = layer_loss(student, teacher, test[0][:250]).item()
        row["after_layers"] = accuracy(student, test)
    student.requires_grad_(True)
    fit_logits = lambda net, image, kind: logit_loss(net, teacher, image, kind)
    seconds = options.logit_seconds + (0 if own else options.layer_seconds)
    row["logit_steps"] = train(student, data, seconds, 2e-3, loss=fit_logits)
    row["after_logits"] = accuracy(student, test)
    return row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to distil, and for how long."""
    parser.add_argument("--ops", default="lawcat,linear", help="what to turn it into (default: lawcat,linear)")
    add_teacher(parser, seconds=120)
    parser.add_argument("--layer-seconds", type=float, default=30)
    parser.add_argument("--logit-seconds", type=float, default=90)
    parser.add_argument("--json", metavar="OUT")


def run(options: argparse.Namespace) -> int:
    """Trains, converts, distils and prints accuracies."""
    data, test = make_shapes(6000, 0), make_shapes(TEST, 1)
    teacher = trained_teacher(options.teacher, options.teacher_seconds)
    seconds = dict(layer_seconds=options.layer_seconds, logit_seconds=options.logit_seconds)
    result = dict(about_run(), **seconds, teacher=accuracy(teacher, test), rows=[])
    print(f"teacher {result['teacher']:.3f}", flush=True)
    teacher.eval()
    for attention in options.ops.split(","):
        keep(distill(attention, teacher, data, test, options), result, options.json)
    return 0


if __name__ == "__main__":
    run_study(sys.modules[__name__])
