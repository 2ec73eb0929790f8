"""Single photographs: upright pixels and a believable focal length."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from visionkit.datasets.images import IMAGE_SUFFIXES, TOO_LARGE, read_image, to_picture
from visionkit.errors import VisionKitError
from visionkit.extras import require

HEIF_SUFFIXES = (".heic", ".heif")
PHOTO_SUFFIXES = IMAGE_SUFFIXES + HEIF_SUFFIXES
DEFAULT_FOCAL = 0.78  # of the long side: a phone's 28 mm lens
# Equivalent focal lengths, in mm, of the widest and longest lenses that people hold in hand.
SHORTEST, LONGEST = 8.0, 400.0
# Phones write lenses the longer the fewer pixels they save: 177 mm on 480x640 instead of 28.
SMALL_PICTURE, LONGEST_OF_SMALL = 1_000_000, 100.0
LARGEST_CROP = 12  # a 35 mm film's diagonal by that of a phone's smallest sensor
SMALLEST = 16  # pixels
# Quarter turns clockwise from how a picture is stored to upright, by its EXIF orientation.
_TURNS = {6: 1, 3: 2, 8: 3}
# What takes an upright picture back to how it is stored where EXIF asks for a mirror, which no camera has.
_MIRROR_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    7: Image.Transpose.TRANSVERSE,
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


def read_turned_photo(path: str | os.PathLike) -> Image.Image:
    """Any image file as an RGB picture after its [quarter_turns]: upright, but not mirrored.

    Raises:
        VisionKitError: it cannot be read; the message names it.
    """
    picture = read_photo_file(path)
    with Image.open(path) as image:
        back = _MIRROR_BACK.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return picture if back is None else picture.transpose(back)


def quarter_turns(path: str | os.PathLike) -> int:
    """How often a file's stored pixels are to be turned clockwise by 90 degrees to stand upright, 0 to 3.

    COLMAP, nerfstudio and instant-ngp pass over EXIF's orientation, so their cameras speak of the stored pixels.
    """
    _prepare_for(path)
    try:
        with Image.open(path) as image:
            return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1), 0)
    except Exception:  # a damaged file is told where it is decoded
        return 0


def stored_size(path: str | os.PathLike) -> tuple[int, int]:
    """(height, width) of a file's stored pixels, by its header alone.

    Raises:
        VisionKitError: it cannot be read; the message leaves the name to the caller.
    """
    _prepare_for(path)
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Image.DecompressionBombError as error:
        raise VisionKitError(TOO_LARGE) from error
    except Exception as error:  # decoders meet a broken file with almost any kind of error
        raise VisionKitError("cannot be read as an image") from error


def check_decodes(path: str | os.PathLike) -> None:
    """Decodes a file to its end, at a low resolution where its format allows.

    Raises:
        VisionKitError: it is damaged; the message leaves the name to the caller.
    """
    _prepare_for(path)
    try:
        with Image.open(path) as image:
            image.draft("RGB", (1, 1))
            image.load()
    except Exception as error:  # decoders meet a broken file with almost any kind of error
        raise VisionKitError("is damaged") from error


def read_photo(photo: str | os.PathLike | Image.Image, focal_ratio: float | None = None) -> Photo:
    """A photograph with its focal length: given, from EXIF, or the usual one of a phone.

    Args:
        photo: image file, or a PIL image.
        focal_ratio: focal length / long side, instead of what EXIF says.

    Raises:
        VisionKitError: the file cannot be read, or is smaller than 16 pixels.
    """
    in_memory = isinstance(photo, Image.Image)
    picture = to_picture(photo) if in_memory else read_photo_file(photo)
    if min(picture.size) < SMALLEST:
        name, pixels = "the PIL image" if in_memory else photo, f"{picture.width}x{picture.height}"
        raise VisionKitError(f"{name}: {pixels} pixels show no scene; expected at least {SMALLEST}x{SMALLEST}")
    note = ""
    if focal_ratio is None:
        focal_ratio, note = focal_from_exif(photo)
    if focal_ratio is None:
        focal_ratio, note = DEFAULT_FOCAL, f"{note}; a phone's 28 mm lens is assumed (--fov tells another)"
    return Photo(np.asarray(picture), focal_ratio * max(picture.size), note)


def focal_from_exif(photo: str | os.PathLike | Image.Image) -> tuple[float | None, str]:
    """Focal length / long side by the 35 mm equivalent in EXIF, or None and the reason in words.

    The long side of a 35 mm film is 36 mm. Cameras write zeros and worse. Believed are lenses of 8 to 400 mm, on small
    pictures to 100 mm, that with the lens's own focal length, where told, make a sensor that there is.
    """
    try:
        tags, pixels = _lens_tags(photo)
        value = tags.get(ExifTags.Base.FocalLengthIn35mmFilm)
        if value is None:
            return None, "it tells no focal length"
        own, zoom = float(tags.get(ExifTags.Base.FocalLength, 0)), float(tags.get(ExifTags.Base.DigitalZoomRatio, 1))
        millimetres = float(value)
    except Exception:  # a damaged EXIF block is no reason to refuse its picture
        return None, "its EXIF cannot be read"
    longest = LONGEST_OF_SMALL if pixels < SMALL_PICTURE else LONGEST
    if own > 0:
        longest = min(longest, LARGEST_CROP * own * max(zoom, 1))
    if not SHORTEST <= millimetres <= longest:
        return None, f"its EXIF says a {millimetres:g} mm lens, which is not believed"
    return millimetres / 36, ""


def _lens_tags(photo: str | os.PathLike | Image.Image) -> tuple[dict, int]:
    """The EXIF tags of the exposure, and the number of pixels."""
    if isinstance(photo, Image.Image):
        return photo.getexif().get_ifd(ExifTags.IFD.Exif), photo.width * photo.height
    _prepare_for(photo)
    with Image.open(photo) as image:
        return image.getexif().get_ifd(ExifTags.IFD.Exif), image.width * image.height


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


def middle_of(image: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, float]:
    """The largest part in the middle of an image that has the shape of ``size``, resized to it.

    The part may begin within a pixel, so that the principal point stays in the middle.

    Args:
        image: (H, W, 3) uint8.
        size: (height, width).

    Returns:
        (height, width, 3) uint8, and how many pixels of the image are as long as one of its own.
    """
    scale = min(image.shape[0] / size[0], image.shape[1] / size[1])
    top, left = (max(0.0, side - scale * part) / 2 for side, part in zip(image.shape, size))
    row, column = int(top), int(left)  # whole pixels outside would shine in
    image = image[row : image.shape[0] - row, column : image.shape[1] - column]
    box = left - column, top - row, image.shape[1] - (left - column), image.shape[0] - (top - row)
    part = Image.fromarray(image).resize(tuple(size[::-1]), Image.Resampling.LANCZOS, box)
    return np.asarray(part), scale


def _prepare_for(path: str | os.PathLike) -> None:
    """Makes Pillow read HEIC photos, if this is one."""
    if str(path).lower().endswith(HEIF_SUFFIXES):
        require("pillow_heif", "nvs").register_heif_opener()
