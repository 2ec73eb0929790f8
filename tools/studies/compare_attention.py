"""Train a tiny vision transformer with each attention for the same CPU time on the same shapes.

python tools/studies/compare_attention.py --seconds 120 --json OUT

A finished mechanism is kept in the file, so that a stopped run goes on where it was.
"""

import argparse
import json
from pathlib import Path

import torch
from shapes import TEST, TinyViT, about_run, accuracy, make_shapes, save_model, train, write_json


def main(arguments: list[str] | None = None) -> None:
    """A row for each mechanism: test accuracy, steps, parameters of its own."""
    from visionkit.ops.attention import attention_names, mechanism

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", default="all", help="names, separated by commas (default: all)")
    parser.add_argument("--seconds", type=float, default=120, help="CPU seconds of training each (default: 120)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher", metavar="FILE", help="write the softmax network there, for the other studies")
    parser.add_argument("--json", required=True, metavar="OUT")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = attention_names() if options.ops == "all" else options.ops.split(",")
    out = Path(options.json)
    result = json.loads(out.read_text()) if out.exists() else dict(about_run(), seconds=options.seconds, rows=[])
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
        result["rows"].append(row)
        print(row, flush=True)
        write_json(options.json, result)


if __name__ == "__main__":
    main()
