"""Reading the text lists that some data sets come with."""

from collections.abc import Iterator
from pathlib import Path

from visionkit.errors import VisionKitError


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each line that is not blank, stripped, with ``<file>, line <n>`` for messages.

    Raises:
        VisionKitError: the file cannot be read, or not as text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise VisionKitError(f"{path}: cannot be read as a text list ({error}); restore it") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield line.strip(), f"{path}, line {number}"
