"""Calibrate attention sinks (ACT) of a trained network without training, and draw where the sinks are.

python tools/studies/calibrate_sinks.py --teacher FILE --json OUT --maps PNG

The network is the softmax transformer of the shapes, which has 64 tokens and no class token. As in the paper, heads are
chosen on held-out images: those whose calibration alone does not lower the accuracy there. The test images are others.
"""

import argparse
import itertools
import sys

import torch
from about import about_run
from shapes import KINDS, TEST, accuracy, add_teacher, make_shapes, trained_teacher
from study import run_study, write_json

from visionkit.backbones.calibration import calibrated_attention
from visionkit.files import beside


def calibrated_accuracy(model, data, **options) -> float:  # noqa: ANN001, ANN003
    """Accuracy under calibration."""
    with calibrated_attention(model, skip=0, **options):
        return accuracy(model, data)


def draw_maps(model, image, path: str, threshold: float) -> None:  # noqa: ANN001
    """Attention that each token receives, an image a row, layers and heads beside it; sinks are outlined."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with torch.no_grad(), calibrated_attention(model, skip=0, threshold=threshold) as maps:
        model(image)
    received, sinks = torch.cat(maps.received, 1), torch.cat(maps.sinks, 1)
    columns = received.shape[1]
    figure, panels = plt.subplots(len(image), columns + 1, figsize=(1.5 * (columns + 1), 1.6 * len(image)))
    for row, picture, of_heads, sink in zip(panels, image, received, sinks):
        row[0].imshow((picture / 4 + 0.5).clamp(0, 1).permute(1, 2, 0))
        for panel, one, where in zip(row[1:], of_heads, sink):
            panel.imshow(one.view(8, 8), vmin=0, vmax=float(received.max()))
            y, x = where.view(8, 8).nonzero(as_tuple=True)
            panel.scatter(x, y, marker="s", s=60, facecolors="none", edgecolors="red")
        for panel in row:
            panel.axis("off")
    figure.tight_layout()
    with beside(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def sink_shares(model, image, threshold: float) -> list[float]:  # noqa: ANN001
    """Number of sinks per head and image, of each layer."""
    with torch.no_grad(), calibrated_attention(model, skip=0, threshold=threshold) as maps:
        model(image)
    return torch.stack([x.float().sum(-1).mean() for x in maps.sinks]).tolist()


def choose_heads(model, data, setting: dict) -> dict[int, list[int]]:  # noqa: ANN001
    """Of each layer the heads whose calibration alone does not lower the accuracy."""
    plain, heads = accuracy(model, data), range(model.blocks[0].attn.num_heads)
    alone = lambda layer, head: calibrated_accuracy(model, data, layers=[layer], heads={layer: [head]}, **setting)
    return {layer: [head for head in heads if alone(layer, head) >= plain] for layer in range(len(model.blocks))}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The network, and what to write."""
    add_teacher(parser, seconds=60)
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--maps", metavar="PNG")


def run(options: argparse.Namespace) -> int:
    """Accuracies without and with calibration, for some thresholds and shares."""
    held_out, test = make_shapes(TEST, 2), make_shapes(TEST, 1)
    model = trained_teacher(options.teacher, options.teacher_seconds)
    plain = accuracy(model, test)
    result = dict(about_run(), classes=len(KINDS), plain=plain, rows=[])
    for threshold, beta in itertools.product((0.1, 3 / 64), (0.4, 0.7)):
        setting = dict(threshold=threshold, beta=beta)
        chosen = choose_heads(model, held_out, setting)
        row = dict(
            setting,
            sinks_per_head_and_image=sink_shares(model, test[0][:250], threshold),
            all_heads=calibrated_accuracy(model, test, **setting),
            chosen_heads=chosen,
            chosen=calibrated_accuracy(model, test, heads=chosen, **setting),
        )
        result["rows"].append(row)
        print(f"plain {plain:.3f}", row, flush=True)
    if options.maps:
        draw_maps(model, test[0][:4], options.maps, 3 / 64)
    if options.json:
        write_json(options.json, result)
    return 0


if __name__ == "__main__":
    run_study(sys.modules[__name__])
