"""What commands that read a capture share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visionkit.nvs.captures import Scene


def open_capture(path: str | os.PathLike) -> Scene:
    """A capture with cameras; what of it is not used is told."""
    from visionkit.nvs.captures import read_capture

    scene = read_capture(path)
    for name, reason in scene.skipped:
        print(f"skipped: {name} {reason}")
    return scene
