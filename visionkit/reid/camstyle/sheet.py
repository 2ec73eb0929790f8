"""A picture of originals beside their translations."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from visionkit.datasets.styled import styled_name
from visionkit.files import write_image
from visionkit.reid.camstyle.data import read_or_warn

CELL_HEIGHT, MARGIN, TITLE_HEIGHT = 128, 4, 16


def draw_sheet(folder: Path, origins: dict[str, tuple[str, str]], labels: Sequence[str], rows: int = 8) -> Image.Image:
    """One row an original: itself, then in the style of each camera; its own camera's cell shows it again, framed.

    Args:
        folder: The styled images.
        origins: Path and camera label by name, as `origins_by_name` gives.
        labels: The cameras, one column each.
        rows: Number of originals, spread over the cameras in turn.
    """
    read = ((name, own, read_or_warn(path)) for name, path, own in _choose(origins, labels, rows))
    chosen = [each for each in read if each[2] is not None]
    width = max((round(image.width * CELL_HEIGHT / image.height) for *_, image in chosen), default=CELL_HEIGHT)
    total_width = (1 + len(labels)) * (width + MARGIN) + MARGIN
    sheet = Image.new("RGB", (total_width, len(chosen) * (CELL_HEIGHT + MARGIN) + TITLE_HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(["original", *(f"style {label}" for label in labels)]):
        draw.text((MARGIN + column * (width + MARGIN), 2), title, fill="black")
    for row, (name, own, image) in enumerate(chosen):
        top = TITLE_HEIGHT + row * (CELL_HEIGHT + MARGIN)
        styled = (image if label == own else _styled(folder / styled_name(name, own, label)) for label in labels)
        for column, cell in enumerate([image, *styled]):
            left = MARGIN + column * (width + MARGIN)
            if cell is not None:
                sheet.paste(cell.resize((width, CELL_HEIGHT), Image.Resampling.BICUBIC), (left, top))
            if column and labels[column - 1] == own:
                draw.rectangle((left, top, left + width - 1, top + CELL_HEIGHT - 1), outline="black", width=2)
    return sheet


def _styled(path: Path) -> Image.Image | None:
    """A translation, if there is one: not all pairs of cameras need be trained."""
    return read_or_warn(path) if path.is_file() else None


def _choose(origins: dict[str, tuple[str, str]], labels: Sequence[str], rows: int) -> list[tuple[str, str, str]]:
    """Name, path and label of originals of each camera in turn, evenly spread over its images."""
    everything = [(name, *each) for name, each in origins.items()]
    by_label = {label: [each for each in everything if each[2] == label] for label in labels}
    by_label = {label: images for label, images in by_label.items() if images}
    turns = -(-rows // max(1, len(by_label)))
    chosen = [images[turn * len(images) // turns] for turn in range(turns) for images in by_label.values()]
    return list(dict.fromkeys(chosen))[:rows]


def write_sheet(
    work_dir: Path, folder: Path, origins: dict[str, tuple[str, str]], labels: Sequence[str], rows: int
) -> None:
    """Writes ``sheet.jpg`` into ``work_dir`` and the same picture for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    sheet = draw_sheet(folder, origins, labels, rows)
    write_image(sheet, work_dir / "sheet.jpg", format="JPEG", quality=95)
    with SummaryWriter(str(work_dir / "tensorboard")) as board:
        board.add_image("camera style", np.asarray(sheet), dataformats="HWC")
