"""The styled images of a folder: their names and their checking."""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from visionkit.datasets.styled import WHO_JOINS, Styled, origin_names, styled_in
from visionkit.errors import VisionKitError


def origins_by_name(labels: Mapping[str, str], others: Iterable[str] = ()) -> dict[str, tuple[str, str]]:
    """Path and camera label (``"1"``, ``"2"``, ...) of each image, by its name in those of its styled images.

    Args:
        labels: The camera label of each path.
        others: Paths that get no style, but among which a styled image's origin will be sought as well.

    Raises:
        VisionKitError: Two images would be called the same, so that their styled images would overwrite each other.
    """
    origins: dict[str, tuple[str, str]] = {}
    names = origin_names(list(dict.fromkeys([*labels, *others])))
    for path, name in ((path, names[path]) for path in labels):
        other, _ = origins.setdefault(name, (path, labels[path]))
        if other != path:
            raise VisionKitError(f"{path}: has the same name as {other}; rename one, styled images carry that name")
    return origins


def check_styled_folder(folder: Path, origins: dict[str, tuple[str, str]], styles: Iterable[str]) -> Counter:
    """Checks a folder of images made before, which may hold real ones too, as the authors' ``bounding_box_train_all``.

    Args:
        folder: A folder of ``<original stem>_fake_<A>to<B>.*`` files; other images are passed over, and styled ones of
            an unknown origin (a distractor, say) with a warning.
        origins: The originals by name, from `origins_by_name`.
        styles: The labels of the cameras whose style an image may have.

    Returns:
        The number of styled images of each (from, to).

    Raises:
        VisionKitError: The folder holds no styled image of an origin, or one has another camera than its origin, or an
            unknown style.
    """
    styled = list(styled_in(folder))
    known = [(path, says) for path, says in styled if says.origin in origins]
    counts = Counter(_check_styled(path, says, origins[says.origin][1], set(styles)) for path, says in known)
    if not counts:
        raise VisionKitError(
            f"{folder}: holds no styled image of the data set; expected <original stem>_fake_<A>to<B>.jpg files"
        )
    if len(known) < len(styled):
        warnings.warn(
            f"{folder}: {len(styled) - len(known)} styled images are of no image of the data set and are passed over; "
            f"{WHO_JOINS}"
        )
    return counts


def _check_styled(path: Path, says: Styled, own: str, styles: set[str]) -> tuple[str, str]:
    if says.from_camera != own:
        raise VisionKitError(f"{path}: says camera {says.from_camera}, its origin's is {own}; rename or remove it")
    if says.to_camera not in styles - {own}:
        expected = ", ".join(sorted(styles - {own}))
        raise VisionKitError(f"{path}: no style of camera {says.to_camera!r}; expected one of {expected}")
    return own, says.to_camera
