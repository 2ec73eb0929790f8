"""Calibrate attention sinks (ACT) of a trained network without training, and draw where the sinks are.

python tools/studies/calibrate_sinks.py --teacher FILE --json OUT --maps PNG

The network is the softmax transformer of the shapes, which has 64 tokens and no class token. As in the paper, heads are
chosen on held-out images: those whose calibration alone does not lower the accuracy there. The test images are others.
"""

import argparse

import torch
from shapes import KINDS, TEST, about_run, accuracy, make_shapes, trained_teacher, write_json


def calibrated_accuracy(model, data, **options) -> float:  # noqa: ANN001, ANN003
    """Accuracy under calibration."""
    from visionkit.backbones.calibration import calibrated_attention

    with calibrated_attention(model, skip=0, **options):
        return accuracy(model, data)


def draw_maps(model, image, path: str, threshold: float) -> None:  # noqa: ANN001
    """Attention that each token receives, an image a row, layers and heads beside it; sinks are outlined."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from visionkit.backbones.calibration import calibrated_attention

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
    figure.savefig(path, dpi=90)


def main(arguments: list[str] | None = None) -> None:
    """Accuracies without and with calibration, for some thresholds and shares."""
    from visionkit.backbones.calibration import calibrated_attention

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", metavar="FILE", help="safetensors of the softmax network; written if missing")
    parser.add_argument("--teacher-seconds", type=float, default=60)
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--maps", metavar="PNG")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    held_out, test = make_shapes(TEST, 2), make_shapes(TEST, 1)
    model = trained_teacher(options.teacher, options.teacher_seconds)
    plain_held_out, plain = accuracy(model, held_out), accuracy(model, test)
    result = dict(about_run(), classes=len(KINDS), plain=plain, rows=[])
    heads, layers = model.blocks[0].attn.num_heads, len(model.blocks)
    for threshold in (0.1, 3 / 64):
        with torch.no_grad(), calibrated_attention(model, skip=0, threshold=threshold) as maps:
            model(test[0][:250])
        share = torch.stack([x.float().sum(-1).mean() for x in maps.sinks]).tolist()
        for beta in (0.4, 0.7):
            setting = dict(threshold=threshold, beta=beta)
            kept = {layer: [] for layer in range(layers)}
            for layer in range(layers):
                for head in range(heads):
                    one = calibrated_accuracy(model, held_out, layers=[layer], heads={layer: [head]}, **setting)
                    if one >= plain_held_out:
                        kept[layer].append(head)
            row = dict(
                setting,
                sinks_per_head_and_image=share,
                all_heads=calibrated_accuracy(model, test, **setting),
                chosen_heads=kept,
                chosen=calibrated_accuracy(model, test, heads=kept, **setting),
            )
            result["rows"].append(row)
            print(f"plain {plain:.3f}", row, flush=True)
    if options.maps:
        draw_maps(model, test[0][:4], options.maps, 3 / 64)
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
