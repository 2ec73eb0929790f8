"""Files that are whole or not there."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from visionkit.errors import VisionKitError


@contextmanager
def beside(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name in the same folder, whose file takes the path's place if nothing goes wrong inside.

    >>> with beside("features.npy") as temporary:
    ...     temporary.write_bytes(data)

    Args:
        path: the file to write; its folder must exist.

    Raises:
        OSError: of the path, not of the temporary name: it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # safetensors writes for its user alone
        os.replace(temporary, path)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)  # which the user knows
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike, option: str) -> None:
    """Looks before the work whether the folder of ``path`` can be made and written to; leaves nothing behind.

    Args:
        path: a file or folder to be written.
        option: which named it.

    Raises:
        VisionKitError: it cannot.
    """
    folder, made = Path(path).parent, []
    try:
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = f"its folder cannot be written to ({error.strerror})"
        raise VisionKitError(f"{path}: {reason}; give another {option}") from error
    finally:
        for each in made:  # the work ahead may still be refused
            with contextlib.suppress(OSError):
                each.rmdir()


def sha256_of(path: str | os.PathLike) -> str:
    """The checksum of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
