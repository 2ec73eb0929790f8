"""Images rendered in another camera's style: ``<stem>_fake_<A>to<B>.*`` beside or apart from their originals.

Where several originals have one stem, as in a folder for each identity, it is ``<folder>__<stem>_fake_<A>to<B>.*``.
"""

import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from visionkit.datasets.images import IMAGE_SUFFIXES
from visionkit.errors import VisionKitError

if TYPE_CHECKING:
    from visionkit.datasets.base import Sample

STYLED_NAME = re.compile(r"(?P<stem>.+)_fake_(?P<a>[A-Za-z0-9]+?)to(?P<b>[A-Za-z0-9]+)$")


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
    for file in sorted(os.listdir(root)):
        stem, suffix = os.path.splitext(file)
        match = STYLED_NAME.match(stem) if suffix.lower() in IMAGE_SUFFIXES else None
        found = originals.get(match["stem"], []) if match else []
        if len(found) > 1:
            raise VisionKitError(
                f"{name}: styled {file} could come from {found[0].path} or {found[1].path}; rename one"
            )
        if found:
            path = os.path.join(root, file)
            camid = found[0].camid if camera == "origin" else _style_camera(path, match["b"])
            rows.append(found[0]._replace(path=path, camid=camid))
        elif match:
            strange += 1
    if not rows:
        raise VisionKitError(
            f"{name}: {root} holds no <stem>_fake_<A>to<B> image of a train image; make them or leave styled out"
        )
    if strange:
        warnings.warn(
            f"{name}: {strange} of the styled images in {root} are left out, their originals are no train images; "
            "query and gallery images join by include_test=True, distractors never"
        )
    return rows


def _style_camera(path: str, number: str) -> int:
    if not number.isdigit():
        raise VisionKitError(f'{path}: camera="style" needs a camera number after "to"; use camera="origin"')
    return int(number) - 1
