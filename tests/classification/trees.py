"""A small made-up folder of image classes: coloured noise, one colour a class."""

import numpy as np
from PIL import Image

COLOURS = dict(blue=(40, 60, 200), green=(40, 180, 60), red=(200, 50, 40))


def write_tree(root, train=8, val=4, size=48):
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(colour, 30, (size, size + 8, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root
