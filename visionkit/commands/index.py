"""Make a gallery index, or bring it up to date: the features of all images in a folder, for `visionkit search`.

visionkit index crops/ --weights work_dirs/market2duke/target/best.pth
visionkit index crops/                                  # later: new, changed and removed images
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from visionkit.errors import VisionKitError
from visionkit.progress import progress
from visionkit.signals import on_signals

if TYPE_CHECKING:
    import numpy as np

    from visionkit.apis import ReIDInferencer
    from visionkit.reid.gallery import GalleryIndex

IMAGES_A_PART, SECONDS_A_PART = 2000, 60  # what a crash may lose, whichever comes first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``visionkit index``."""
    parser.add_argument("folder", help="a folder of images; sub-folders are searched too")
    parser.add_argument("--weights", help="a checkpoint of visionkit train or of CORE-ReID's authors, for a new index")
    parser.add_argument("--index", help="the index's folder (default: FOLDER.index)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time (default: 64)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images (default: 0)")


def run(options: argparse.Namespace) -> int:
    """Extract what the index does not hold yet, a part at a time, and drop what is no longer there."""
    from visionkit.apis import files_below
    from visionkit.reid.gallery_files import stamp_of, writing

    folder = os.path.abspath(options.folder)
    if not os.path.isdir(folder):
        raise VisionKitError(f"{options.folder}: no such folder; give a folder of images")
    files = {file: stamp_of(file) for file in files_below(folder)}
    place = Path(options.index or f"{folder}.index")
    with writing(place):
        index, reid = open_index(place, options)
        return update(index, reid, folder, files, place)


def open_index(place: Path, options: argparse.Namespace) -> tuple[GalleryIndex, ReIDInferencer]:
    """The index that lies there, or an empty one, and the model that makes its features."""
    from visionkit.apis import ReIDInferencer
    from visionkit.reid.gallery import GalleryIndex
    from visionkit.reid.gallery_files import holds_index

    index = GalleryIndex.load(place) if holds_index(place) else None
    weights = options.weights or ("" if index is None else index.weights)
    if not weights:
        raise VisionKitError("--weights: give a checkpoint of visionkit train; a new index does not know its model yet")
    reid = ReIDInferencer(weights, device=options.device, batch_size=options.batch_size, num_workers=options.workers)
    index = GalleryIndex(reid.model_name, reid.weights) if index is None else index
    index.check_model(reid.model_name)
    return index, reid


def update(index: GalleryIndex, reid: ReIDInferencer, folder: str, files: dict, place: Path) -> int:
    """Make an index hold a folder's files as they are now; images of other folders stay.

    Args:
        index: the index that lies at ``place``.
        reid: the model of the index.
        folder: absolute path of the images' folder.
        files: the stamp (``stamp_of``) of each image in the folder, by absolute path.
        place: the index's folder.

    Returns:
        Exit status.
    """
    plan = compare(index.stamps, folder, files)
    index.drop(plan.changed | plan.missing)
    wanted = [file for file in files if file in plan.new or file in plan.changed]
    with progress("images", len(wanted)) as advance, stop_asked() as stopped:
        for paths, features in parts(reid.batches(wanted, skip=True), stopped, advance):
            index.add(features, paths, [files[path] for path in paths])
            index.save(place)
    if stopped:
        print(f"interrupted; {place} holds {len(index)} images and the same command adds the rest", file=sys.stderr)
        return 128 + stopped[0]
    if len(index) == 0:
        raise VisionKitError(
            f"{folder}: none of its {len(files)} images could be read, nothing was indexed; restore them"
        )
    held = set(index.paths)
    added, changed, missing = len(plan.new & held), len(plan.changed & held), len(plan.missing)
    print(
        f"{place}: {added} images added, {changed} changed, {missing} removed, {plan.kept} kept, "
        f"{len(wanted) - added - changed} could not be read"
    )
    if gone := sum(not os.path.exists(path) for path in held - files.keys()):
        print(f"{gone} of the images kept no longer exist; were their folders moved, or are they not mounted?")
    return 0


class Plan(NamedTuple):
    """Images to extract, to extract again, to drop, and how many stay as they are."""

    new: set[str]
    changed: set[str]
    missing: set[str]
    kept: int


def compare(known: dict, folder: str, files: dict) -> Plan:
    """What is to be done for an index (path: stamp) to hold the files (path: stamp) of a folder."""
    new = files.keys() - known.keys()
    changed = {file for file, stamp in files.items() if file in known and known[file] != stamp}
    inside = os.path.join(folder, "")
    missing = {path for path in known.keys() - files.keys() if path.startswith(inside)}
    return Plan(new, changed, missing, len(known) - len(changed) - len(missing))


def parts(
    batches: Iterable[tuple[list, np.ndarray]], stopped: list, advance: Callable[[int], None]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Batches of (paths, features (B, D)) put together until they are worth a file, or something is in ``stopped``.

    ``advance`` is told of each batch's length.
    """
    import numpy as np

    paths, features, began = [], [], time.monotonic()
    for some, vectors in batches:
        paths += some
        features.append(vectors)
        advance(len(some))
        if stopped or len(paths) >= IMAGES_A_PART or time.monotonic() - began >= SECONDS_A_PART:
            yield paths, np.concatenate(features)
            paths, features, began = [], [], time.monotonic()
        if stopped:
            return
    if paths:
        yield paths, np.concatenate(features)


@contextmanager
def stop_asked() -> Iterator[list[int]]:
    """Inside, a first SIGINT or SIGTERM is put in the list and cuts nothing in two; a second one ends the program."""
    asked: list[int] = []
    with ExitStack() as listening:

        def ask(number: int, frame: object) -> None:
            asked.append(number)
            print("stopping after this batch; once more to stop at once", file=sys.stderr, flush=True)
            listening.close()

        listening.enter_context(on_signals(ask, signal.SIGINT, signal.SIGTERM))
        yield asked
