"""Files that are whole or not there."""

import contextlib
import errno
import hashlib
import io
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from visionkit.errors import VisionKitError

if TYPE_CHECKING:  # commands that draw nothing do without Pillow's import
    from PIL import Image

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def beside(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name in the same folder, whose file takes the path's place if nothing goes wrong inside.

    >>> with beside("features.npy") as temporary:
    ...     temporary.write_bytes(data)

    Args:
        path: the file to write; its folder must exist.

    Raises:
        VisionKitError: the disk is full, or the path cannot be written.
    """
    path = Path(path)
    # 255 bytes at most, as a name may have; containers that share a disk may share the number of a process too
    temporary = path.with_name(f".{path.name[-60:]}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # safetensors writes for its user alone
        os.replace(temporary, path)
    except OSError as error:
        if error.filename not in (None, str(temporary)):
            raise
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # a read-only disk refuses this even where there is no such file
            temporary.unlink()


def cannot_write(path: str | os.PathLike, error: OSError) -> VisionKitError:
    """The one line that a user reads when a disk is full or read-only."""
    if error.errno in FULL:
        return VisionKitError(f"{path}: the disk is full; free some space and run the same command again")
    reason = error.strerror or error
    return VisionKitError(f"{path}: cannot be written ({reason}); check the disk and its permissions")


def write_text(path: str | Path, text: str) -> None:
    """Write a small text file under a temporary name, then rename it.

    Raises:
        VisionKitError: The disk is full or the folder cannot be written.
    """
    with beside(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_image(image: "Image.Image", path: str | os.PathLike, **options: object) -> None:
    """Writes a whole image or none. Pillow itself does not notice what a full disk has cut off.

    Args:
        image: the picture.
        path: the file; its folder must exist.
        options: options of Pillow's ``save``, ``format`` among them.

    Raises:
        VisionKitError: the disk is full, or the path cannot be written.
    """
    data = io.BytesIO()
    image.save(data, **options)
    with beside(path) as temporary:
        temporary.write_bytes(data.getvalue())


def remove_leftovers(folder: str | Path, below: bool = True) -> None:
    """Delete the temporary files that a killed run left in a folder, and in those below it."""
    for path in Path(folder).glob("**/.*.tmp" if below else ".*.tmp"):
        if re.fullmatch(r"\..+\.[0-9a-f]+\.tmp", path.name):
            path.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike, option: str) -> None:
    """Looks before the work whether the folder of ``path`` can be made and written to; leaves nothing behind.

    Args:
        path: a file or folder to be written.
        option: name of the option that gave the path, for the message.

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


def check_no_folder(path: str | os.PathLike, option: str) -> None:
    """Looks before the work whether a folder is where the file ``path`` is to be written.

    Args:
        path: the file.
        option: name of the option that gave the path, for the message.

    Raises:
        VisionKitError: it is.
    """
    if os.path.isdir(path):
        raise VisionKitError(f"{path}: is a folder, a file is to be written there; give another name with {option}")


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
