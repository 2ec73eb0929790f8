"""Single photographs: upright pixels and a believable focal length."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from visionkit.datasets.images import IMAGE_SUFFIXES, read_image
from visionkit.errors import VisionKitError
from visionkit.extras import require

HEIF_SUFFIXES = (".heic", ".heif")
PHOTO_SUFFIXES = IMAGE_SUFFIXES + HEIF_SUFFIXES
DEFAULT_FOCAL = 0.78  # of the long side: a phone's 28 mm lens
# Equivalent focal lengths, in mm, of the widest and longest lenses that people hold in hand.
SHORTEST, LONGEST = 8.0, 400.0
SMALLEST = 16  # pixels
_ORIENTATION, _EXIF, _FOCAL_35MM = 0x0112, 0x8769, 0xA405
# What takes an upright picture back to how it is stored, by its EXIF orientation.
_TURN_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


class Photo(NamedTuple):
    """A photograph ready to use.

    image: (H, W, 3) uint8, upright. focal: in pixels of this image. note: where the focal length is from, or "" where
    EXIF told it.
    """

    image: np.ndarray
    focal: float
    note: str


def read_photo_file(path: str | os.PathLike) -> Image.Image:
    """Any image file, HEIC included, as an upright RGB picture.

    Raises:
        VisionKitError: it cannot be read; the message names it.
    """
    _prepare_for(path)
    return read_image(os.fspath(path))


def read_stored_photo(path: str | os.PathLike) -> Image.Image:
    """Any image file as an RGB picture of its pixels as they are stored, not turned as EXIF asks.

    COLMAP, nerfstudio and instant-ngp pass over EXIF's orientation, so their cameras speak of these pixels.

    Raises:
        VisionKitError: it cannot be read; the message names it.
    """
    picture = read_photo_file(path)
    with Image.open(path) as image:
        turn = _TURN_BACK.get(image.getexif().get(_ORIENTATION, 1))
    return picture if turn is None else picture.transpose(turn)


def stored_size(path: str | os.PathLike) -> tuple[int, int]:
    """(height, width) of a file's stored pixels, by its header alone.

    Raises:
        VisionKitError: it cannot be read; the message leaves the name to the caller.
    """
    _prepare_for(path)
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:  # decoders meet a broken file with almost any kind of error
        raise VisionKitError("cannot be read as an image") from error


def read_photo(path: str | os.PathLike, focal_ratio: float | None = None) -> Photo:
    """A photograph with its focal length: given, from EXIF, or the usual one of a phone.

    Args:
        path: image file.
        focal_ratio: focal length / long side, instead of what EXIF says.

    Raises:
        VisionKitError: the file cannot be read, or is smaller than 16 pixels.
    """
    picture = read_photo_file(path)
    if min(picture.size) < SMALLEST:
        raise VisionKitError(
            f"{path}: {picture.width}x{picture.height} pixels show no scene; expected at least {SMALLEST}x{SMALLEST}"
        )
    note = ""
    if focal_ratio is None:
        focal_ratio, note = focal_from_exif(path)
    if focal_ratio is None:
        focal_ratio, note = DEFAULT_FOCAL, f"{note}; a phone's 28 mm lens is assumed (--fov tells another)"
    return Photo(np.asarray(picture), focal_ratio * max(picture.size), note)


def focal_from_exif(path: str | os.PathLike) -> tuple[float | None, str]:
    """Focal length / long side by the 35 mm equivalent in EXIF, or None and the reason in words.

    The long side of a 35 mm film is 36 mm. Cameras write zeros and worse, so that only lenses of 8 to 400 mm are
    believed.
    """
    _prepare_for(path)
    try:
        with Image.open(path) as image:
            value = image.getexif().get_ifd(_EXIF).get(_FOCAL_35MM)
        millimetres = None if value is None else float(value)
    except Exception:  # a damaged EXIF block is no reason to refuse its picture
        return None, "its EXIF cannot be read"
    if millimetres is None:
        return None, "it tells no focal length"
    if not SHORTEST <= millimetres <= LONGEST:
        return None, f"its EXIF says a {millimetres:g} mm lens, which is not believed"
    return millimetres / 36, ""


def photos_in(folder: str | os.PathLike) -> list[Path]:
    """The photographs of a folder, hidden files left out, sorted by name.

    Raises:
        VisionKitError: there is none.
    """
    found = [
        path
        for path in sorted(Path(folder).iterdir())
        if path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]
    if not found:
        raise VisionKitError(f"{folder}: holds no photos ({', '.join(PHOTO_SUFFIXES)}); check the folder")
    return found


def _prepare_for(path: str | os.PathLike) -> None:
    """Makes Pillow read HEIC photos, if this is one."""
    if str(path).lower().endswith(HEIF_SUFFIXES):
        require("pillow_heif", "nvs").register_heif_opener()
