"""Images rendered in another camera's style: ``<stem>_fake_<A>to<B>.*`` beside or apart from their originals.

Where several originals have one stem, as in a folder for each identity, it is ``<folder>__<stem>_fake_<A>to<B>.*``.
"""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from visionkit.datasets.images import is_image_name
from visionkit.errors import VisionKitError

if TYPE_CHECKING:
    from visionkit.datasets.base import Sample

STYLED_NAME = re.compile(r"(?P<stem>.+)_fake_(?P<a>[A-Za-z0-9]+?)to(?P<b>[A-Za-z0-9]+)$")
WHO_JOINS = "query and gallery images join by include_test=True, distractors never"


class Styled(NamedTuple):
    """What a name such as ``0002_c1s1_000451_03_fake_1to4.jpg`` says: the origin, its camera, the style's."""

    origin: str
    from_camera: str
    to_camera: str


def styled_name(origin: str, from_camera: str, to_camera: str) -> str:
    """The file name of an image in another camera's style. Cameras count from 1, as in the data sets' file names.

    Args:
        origin: Name of the original, see `origin_names`.
        from_camera, to_camera: Labels of the original's camera and of the style's.
    """
    return f"{origin}_fake_{from_camera}to{to_camera}.jpg"


def parse_styled_name(name: str | os.PathLike) -> Styled | None:
    """What the name of a styled image says, or None where it is not one."""
    match = STYLED_NAME.match(Path(name).stem)
    if match is None:
        return None
    return Styled(match["stem"], *(match[camera].lstrip("0") or "0" for camera in "ab"))  # some count _01to02


def styled_in(folder: str | os.PathLike) -> Iterator[tuple[Path, Styled]]:
    """The styled images of a folder, sorted, with what their names say; real images are passed over."""
    for path in sorted(Path(folder).iterdir()):
        if is_image_name(path.name) and (says := parse_styled_name(path)):
            yield path, says


def possible_names(path: str) -> tuple[str, str]:
    """What an image may be called in the names of its styled ones: by its stem, or with its folder's name before it."""
    return Path(path).stem, f"{Path(path).parent.name}__{Path(path).stem}"


def origin_names(paths: Sequence[str]) -> dict[str, str]:
    """What each image is called in the names of its styled ones: by its stem, unless another one has that too."""
    counts = Counter(Path(path).stem for path in paths)
    return {path: possible_names(path)[counts[Path(path).stem] > 1] for path in paths}


def styled_samples(
    samples: Sequence["Sample"], name: str, root: str | os.PathLike, camera: str = "origin"
) -> list["Sample"]:
    """Rows for the styled images whose original is in ``samples``; those of others are passed over with a warning.

    Args:
        samples: Rows of the train split, relabelled.
        name: The data set's name, for messages.
        root: Folder of styled images; its real images are ignored.
        camera: "origin" keeps the original's camera; "style" takes B of ``_fake_<A>to<B>``, a 1-based camera number.

    Returns:
        Rows sorted by file name, with their original's identity.

    Raises:
        VisionKitError: no such folder or camera, no image of an original, or one that could be of two.
    """
    if camera not in ("origin", "style"):
        raise VisionKitError(f'{name}: styled camera={camera!r}: expected "origin" or "style"')
    if not Path(root).is_dir():
        raise VisionKitError(f"{name}: styled root {root} is no folder; make the images first or leave styled out")
    originals: dict[str, list[Sample]] = {}
    for sample in samples:
        for stem in possible_names(sample.path):
            originals.setdefault(stem, []).append(sample)
    rows, strange = [], 0
    for path, says in styled_in(root):
        found = originals.get(says.origin, [])
        if len(found) > 1:
            raise VisionKitError(
                f"{name}: styled {path.name} could come from {found[0].path} or {found[1].path}; rename one"
            )
        if found:
            camid = found[0].camid if camera == "origin" else _style_camera(path, says.to_camera)
            rows.append(found[0]._replace(path=os.path.join(root, path.name), camid=camid))
        else:
            strange += 1
    if not rows:
        raise VisionKitError(
            f"{name}: {root} holds no <stem>_fake_<A>to<B> image of a train image; make them or leave styled out"
        )
    if strange:
        warnings.warn(
            f"{name}: {strange} of the styled images in {root} are left out, their originals are no train images; "
            f"{WHO_JOINS}"
        )
    return rows


def _style_camera(path: Path, number: str) -> int:
    if not number.isdigit():
        raise VisionKitError(f'{path}: camera="style" needs a camera number after "to"; use camera="origin"')
    return int(number) - 1
