"""Pictures of rendered views, (H, W, 3) uint8 each: beside photographs and depths, in rows, on sheets."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor

from visionkit.files import write_image

GAP = 4


def side_by_side(pictures: Sequence[np.ndarray], gap: int = GAP) -> np.ndarray:
    """Pictures (H, W, 3) of one height in a row with gaps."""
    space = [((0, 0), (gap if i else 0, 0), (0, 0)) for i in range(len(pictures))]
    return np.concatenate([np.pad(*each, constant_values=255) for each in zip(pictures, space)], axis=1)


def stacked(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) one below the other, with a white line between and white beside narrower ones."""
    width = max(picture.shape[1] for picture in pictures)
    space = [((GAP if i else 0, 0), (0, width - each.shape[1]), (0, 0)) for i, each in enumerate(pictures)]
    return np.concatenate([np.pad(*each, constant_values=255) for each in zip(pictures, space)])


def contact_sheet(frames: Sequence[np.ndarray], columns: int = 4) -> np.ndarray:
    """Frames (H, W, 3) uint8 of one size in rows, first to last, with a white margin."""
    rows = [side_by_side(frames[start : start + columns]) for start in range(0, len(frames), columns)]
    return np.pad(stacked(rows), ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)


def framed(image: np.ndarray, shape: tuple) -> np.ndarray:
    """The input photo in a cell of the sheet."""
    cell = Image.new("RGB", (shape[1], shape[0]), "white")
    picture = Image.fromarray(image)
    picture = picture.resize((round(picture.width * shape[0] / picture.height), shape[0]))
    cell.paste(picture, ((cell.width - picture.width) // 2, 0))
    return np.asarray(cell)


def depth_picture(depth: np.ndarray, near: float, far: float) -> np.ndarray:
    """Distances (H, W) as colours (H, W, 3) uint8: warm is near, dark is far; even steps in 1 / distance."""
    share = (1 / np.clip(depth, near, far) - 1 / far) / (1 / near - 1 / far)
    return (matplotlib.colormaps["inferno"](share)[..., :3] * 255).astype(np.uint8)


def depth_range(depths: list[np.ndarray], near: float, far: float) -> tuple[float, float]:
    """Distances between which colours are spread: from the nearest that some views' depths (H, W) show to ``far``.

    What is rendered from lies behind ``near``, often far behind: that would leave dark colours alone to the subject.
    """
    nearest = min(float(np.quantile(depth, 0.02)) for depth in depths)
    return (nearest if near < nearest < far else near), far


def with_depth(photo: np.ndarray | None, rgb: np.ndarray, depth: np.ndarray, near: float, far: float) -> np.ndarray:
    """A photograph, if there is one, what was rendered for it, and its distances (H, W) as colours."""
    pictures = [rgb, depth_picture(depth, near, far)]
    return side_by_side(pictures if photo is None else [photo, *pictures])


def with_depths(
    views: Iterable[tuple[np.ndarray | None, np.ndarray, np.ndarray]], near: float, far: float
) -> Iterator[np.ndarray]:
    """Photos or none, rendered views and depths side by side, all depths in the colours that suit the first."""
    depths = None
    for photo, rgb, depth in views:
        depths = depths or depth_range([depth], near, far)
        yield with_depth(photo, rgb, depth, *depths)


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
    pairs = [side_by_side([_bytes(image[view]), _bytes(predicted[view])]) for view in chosen]
    return side_by_side([_bytes(image[0]), *pairs], 2 * GAP)


def save_picture(picture: np.ndarray, path: str | os.PathLike) -> None:
    """Writes a whole file or none; the name's ending gives the format."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(Image.fromarray(picture), path, format=Image.registered_extensions()[path.suffix.lower()], quality=92)


def _bytes(picture: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    return (picture.movedim(0, -1).clamp(0, 1) * 255).round().byte().cpu().numpy()
