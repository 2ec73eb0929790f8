"""Sheets of rendered views beside the photographs."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from visionkit.nvs.video import save_picture

GAP = 4


def view_sheet(image: Tensor, predicted: Tensor, columns: int = 4) -> np.ndarray:
    """A row of pictures: the input view, then pairs of a target view and what was rendered for it.

    Args:
        image: (V, 3, H, W) in [0, 1], the input view first.
        predicted: (V, 3, H, W).
        columns: pairs, evenly spread over the targets.

    Returns:
        (H, width, 3) uint8.
    """
    chosen = np.unique(np.linspace(1, len(image) - 1, columns).round().astype(int))
    pictures = [image[0], *(each[view] for view in chosen for each in (image, predicted))]
    pictures = [(picture.movedim(0, -1).clamp(0, 1) * 255).round().byte().cpu().numpy() for picture in pictures]
    space = np.full((pictures[0].shape[0], GAP, 3), 255, np.uint8)
    parts = [part for i, picture in enumerate(pictures) for part in ([space] * (1 + i % 2) if i else []) + [picture]]
    return np.concatenate(parts, axis=1)


def write_sheet(path: Path, rows: list[np.ndarray]) -> Path:
    """Writes rows, each (H, W, 3) uint8 of one width W, below each other."""
    space = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    stack = [part for i, row in enumerate(rows) for part in ([space] if i else []) + [row]]
    save_picture(Image.fromarray(np.concatenate(stack)), path)
    return path
