"""Write the shapes of shapes.py as a folder of images a class, to try configs/*_imagenet1k.py without ImageNet.

python tools/studies/shapes_folder.py --out data/shapes
visionkit train configs/mavit_tiny_imagenet1k.py --cfg-options source.root=data/shapes ...
"""

import argparse
import sys
from pathlib import Path

from PIL import Image
from shapes import KINDS, make_shapes
from study import run_study

from visionkit.errors import VisionKitError
from visionkit.files import write_image

PIXELS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to, and how many."""
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--train", type=int, default=4000, help="number of training images (default: 4000)")
    parser.add_argument("--val", type=int, default=800, help="number of validation images (default: 800)")


def run(options: argparse.Namespace) -> int:
    """Both splits."""
    if min(options.train, options.val) < 1:
        raise VisionKitError(f"--train {options.train}, --val {options.val}: expected 1 or more")
    for seed, (split, count) in enumerate((("train", options.train), ("val", options.val)), start=1):
        for kind in KINDS:
            (options.out / split / kind).mkdir(parents=True, exist_ok=True)
        images, kinds = make_shapes(count, seed)
        pixels = ((images / 4 + 0.5).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
        for i, (picture, kind) in enumerate(zip(pixels, kinds.tolist())):
            path = options.out / split / KINDS[kind] / f"{i:05d}.png"
            write_image(Image.fromarray(picture).resize((PIXELS, PIXELS)), path, format="PNG")
    print(f"{options.train} and {options.val} images of {len(KINDS)} classes in {options.out}")
    return 0


if __name__ == "__main__":
    run_study(sys.modules[__name__])
