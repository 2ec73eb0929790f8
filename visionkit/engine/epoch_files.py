"""The checkpoints of a run's epochs, by the names of their files."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from mmengine.logging import print_log

from visionkit.engine.checkpoints import is_whole

_EPOCH_FILE = re.compile(r"epoch_(\d+)(?:_iter_(\d+))?\.pth")  # so many epochs, and iterations of the next one


def epoch_checkpoints(folder: str | Path) -> Iterator[Path]:
    """The ``epoch_<n>.pth`` and ``epoch_<n>_iter_<m>.pth`` files of a folder, newest first."""
    found = [(at, path) for path in Path(folder).glob("epoch_*.pth") if (at := _position(path))]
    return (path for _, path in sorted(found, reverse=True))


def _position(path: Path) -> tuple[int, int] | None:
    """Whole epochs, and iterations of the next, that a file's name tells."""
    match = _EPOCH_FILE.fullmatch(path.name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def no_longer_needed(folder: str | Path, keep: int) -> list[Path]:
    """All epoch checkpoints but the newest ``keep``, and those inside an epoch that a newer one follows."""
    files = list(epoch_checkpoints(folder))
    whole = [path for path in files if _position(path)[1] == 0]
    newest = max((_position(path) for path in whole), default=(0, 0))
    return whole[keep:] + [path for path in files if _position(path)[1] and _position(path) < newest]


def newest_whole_checkpoint(folder: str | Path) -> Path | None:
    """The newest epoch checkpoint that is whole; a damaged newer one is passed over with a warning."""
    for path in epoch_checkpoints(folder):
        if is_whole(path):
            return path
        print_log(f"{path}: damaged, falling back to the checkpoint before it", "current", logging.WARNING)
    return None
