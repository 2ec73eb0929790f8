"""Reading images: one place that turns any file into an 8-bit RGB picture, and a cache of what was decoded.

Crops come from detectors, phones and old archives, so grey, CMYK, 16-bit, transparent and EXIF-rotated files are all
normal input. A file that cannot be read is named.
"""

import mmap
import os
import stat
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from visionkit.errors import VisionKitError

TOO_LARGE = "has more pixels than PIL.Image.MAX_IMAGE_PIXELS lets through; scale it down"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


def images_below(folder: str | os.PathLike) -> list[str]:
    """All image files in a folder and below it, sorted by path; hidden ones are passed over.

    Links to folders are followed. A folder that can be reached in several ways is taken once, by its own path if that
    lies below.

    Raises:
        VisionKitError: a folder cannot be read.
    """
    found, seen, starts = [], set(), [os.fspath(folder)]
    for start in starts:  # which grows by the links that are met
        for place, folders, files in os.walk(start, onerror=_unreadable_folder):
            real = os.path.realpath(place)
            folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
            if real in seen:
                continue
            seen.add(real)
            starts += filter(os.path.islink, (os.path.join(place, name) for name in folders))
            found += [os.path.join(place, name) for name in files if is_image_name(name)]
    return sorted(found)


def _unreadable_folder(error: OSError) -> None:
    raise VisionKitError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from error


def is_image_name(name: str) -> bool:
    """Whether a file of that name is an image and not hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def read_image(path: str) -> Image.Image:
    """Read a file as an upright 8-bit RGB picture.

    16-bit grey is scaled by 255/65535 and floating-point grey, which must lie in 0 to 1, by 255; transparency is put on
    black, and the EXIF orientation is applied.

    Args:
        path: Image file.

    Returns:
        PIL image of mode RGB, fully decoded.

    Raises:
        VisionKitError: the file is missing, empty, truncated or no image; the message names it.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe waits for a writer, maybe for ever
            raise OSError("it is no regular file")
        with Image.open(path) as image:
            return _upright_rgb(image)
    except Image.DecompressionBombError as error:
        raise VisionKitError(f"{path}: {TOO_LARGE}") from error
    except Exception as error:  # decoders meet a broken file with almost any kind of error
        reason = "no such file" if isinstance(error, FileNotFoundError) else _reason(error)
        raise VisionKitError(f"{path}: cannot be read as an image ({reason}); restore or remove the file") from error


def to_picture(image: str | os.PathLike | Image.Image) -> Image.Image:
    """A file, or an image in memory, as the upright 8-bit RGB picture that :func:`read_image` gives.

    Raises:
        VisionKitError: the file cannot be read, or the image cannot be decoded.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(os.fspath(image))
    try:
        return _upright_rgb(image)
    except Exception as error:  # a PIL image of a file is decoded only now
        name = getattr(image, "filename", "") or "the PIL image"
        raise VisionKitError(f"{name}: cannot be decoded ({_reason(error)}); give a whole image") from error


def _reason(error: Exception) -> str:
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return words.replace("\n", " ")


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):
        image = _eight_bits(np.asarray(image).astype(np.float64) / 65535)
    elif image.mode == "F":
        image = _eight_bits(_unit_values(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("RGB")


def _unit_values(grey: np.ndarray) -> np.ndarray:
    """Floating-point values, which have no range of their own: other ones than 0 to 1 would come out black or white."""
    if not (grey.min() >= 0 and grey.max() <= 1):
        raise ValueError(f"floating-point values from {grey.min():g} to {grey.max():g}, expected 0 to 1")
    return grey.astype(np.float64)


def _eight_bits(grey: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(grey * 255), 0, 255).astype(np.uint8))


def _shared_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 zeros shared with forked loader workers: an anonymous mapping, which no /dev/shm limits."""
    size = int(np.prod(shape))
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), dtype=np.uint8, count=size).reshape(shape)


class ImageReader:
    """Reads the files of a data set by row, decoding each once when it has a cache.

    The cache is filled as rows are asked for and is shared with forked loader workers, so it survives the workers of
    one epoch. Spawned workers start with an empty one.

    Args:
        paths: One file per row.
        cache: None, or "memory" to keep resized crops, H*W*3 bytes each.
        cache_size: (H, W) of the cached crops. With the same size in ``Resize`` the items are the same bit for bit as
            without a cache.
    """

    def __init__(self, paths: Sequence[str], cache: str | None = None, cache_size: Sequence[int] | None = None) -> None:
        if cache not in (None, "memory"):
            raise VisionKitError(f'cache={cache!r}: expected None or "memory"')
        if cache and not is_size(cache_size):
            raise VisionKitError(f'cache_size={cache_size!r}: cache="memory" needs (height, width) in pixels')
        self.paths = list(paths)
        self.cache_size = tuple(cache_size) if cache else None
        self._allocate()

    def _allocate(self) -> None:
        self._warned = _shared_zeros((len(self.paths),))
        if self.cache_size:
            self._filled = _shared_zeros((len(self.paths),))
            self._pixels = _shared_zeros((len(self.paths), *self.cache_size, 3))

    def __getstate__(self) -> dict:
        return dict(paths=self.paths, cache_size=self.cache_size)  # never pickle gigabytes of pixels

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._allocate()

    def read(self, row: int) -> Image.Image:
        """PIL RGB image of one row. Raises VisionKitError naming the file when it cannot be read."""
        if self.cache_size is None:
            return read_image(self.paths[row])
        if not self._filled[row]:
            height, width = self.cache_size
            self._pixels[row] = np.asarray(resize(read_image(self.paths[row]), height, width))
            self._filled[row] = 1
        return Image.fromarray(self._pixels[row])

    def warn_once(self, row: int, error: VisionKitError) -> None:
        """Warn about an unreadable file, once however many workers and epochs meet it."""
        if not self._warned[row]:
            self._warned[row] = 1
            warnings.warn(f"{error}; training goes on with another image", stacklevel=2)


def resize(image: Image.Image, height: int, width: int) -> Image.Image:
    """Bicubic resize to (height, width); the image itself when it has that size already."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC)


def is_size(size: object) -> bool:
    """Whether this is (height, width) in whole pixels."""
    return isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
