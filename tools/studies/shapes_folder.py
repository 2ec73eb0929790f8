"""Write the shapes of shapes.py as a folder of images a class, to try configs/*_imagenet1k.py without ImageNet.

python tools/studies/shapes_folder.py --out data/shapes
visionkit train configs/mavit_tiny_imagenet1k.py --cfg-options source.root=data/shapes ...
"""

import argparse
from pathlib import Path

from PIL import Image
from shapes import KINDS, make_shapes

PIXELS = 64


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=4000, help="number of training images (default: 4000)")
    parser.add_argument("--val", type=int, default=800, help="number of validation images (default: 800)")
    options = parser.parse_args()
    if min(options.train, options.val) < 1:
        parser.error(f"--train {options.train}, --val {options.val}: expected 1 or more")
    for seed, (split, count) in enumerate((("train", options.train), ("val", options.val)), start=1):
        images, kinds = make_shapes(count, seed)
        pixels = ((images / 4 + 0.5).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
        for kind in KINDS:
            (options.out / split / kind).mkdir(parents=True, exist_ok=True)
        for i, (picture, kind) in enumerate(zip(pixels, kinds.tolist())):
            Image.fromarray(picture).resize((PIXELS, PIXELS)).save(options.out / split / KINDS[kind] / f"{i:05d}.png")
    print(f"{options.train} and {options.val} images of {len(KINDS)} classes in {options.out}")


if __name__ == "__main__":
    main()
