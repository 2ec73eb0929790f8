"""Make or extend a gallery index: the features of all images in a folder, for `visionkit search`.

visionkit index crops/ --weights work_dirs/market2duke/target/best.pth
visionkit index crops/                                  # later: adds the images that are new
"""

from __future__ import annotations

import argparse
from pathlib import Path

IMAGES_A_PART = 20000  # what an interruption may lose


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``visionkit index``."""
    parser.add_argument("folder", help="a folder of images; sub-folders are searched too")
    parser.add_argument("--weights", help="a checkpoint of visionkit train; an existing index remembers its own")
    parser.add_argument("--index", help="the index's folder (default: FOLDER.index)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time (default: 64)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images (default: 0)")


def run(options: argparse.Namespace) -> int:
    """Extract what the index does not hold yet, a part at a time."""
    from visionkit.apis import ReIDInferencer, files_below
    from visionkit.errors import VisionKitError
    from visionkit.reid.gallery import GalleryIndex, holds_index

    if not Path(options.folder).is_dir():
        raise VisionKitError(f"{options.folder}: no such folder; give a folder of images")
    folder = Path(options.index or f"{Path(options.folder).resolve()}.index")
    index = GalleryIndex.load(folder) if holds_index(folder) else None
    weights = options.weights or (index.weights if index else "")
    if not weights:
        raise VisionKitError("--weights: give a checkpoint of visionkit train; a new index does not know its model yet")
    reid = ReIDInferencer(weights, device=options.device, batch_size=options.batch_size, num_workers=options.workers)
    index = index or GalleryIndex(reid.model_name, reid.weights)
    index.check_model(reid.model_name)
    known = set(index.paths)
    files = [file for file in map(str, map(Path.absolute, map(Path, files_below(options.folder)))) if file not in known]
    before = len(index)
    for start in range(0, len(files), IMAGES_A_PART):
        add_files(index, reid, files[start : start + IMAGES_A_PART])
        index.save(folder)
        print(f"{len(index)} images in {folder}", flush=True)
    skipped = len(files) - (len(index) - before)
    if len(index) == 0:
        raise VisionKitError(f"{options.folder}: none of its {len(files)} images could be read; nothing was indexed")
    print(f"{folder}: {len(index) - before} images added, {len(known)} were there, {skipped} could not be read")
    return 0


def add_files(index: object, reid: object, files: list[str]) -> None:
    """Add a part to an index; files that cannot be read are told and left out."""
    import numpy as np
    from rich.console import Console
    from rich.progress import Progress

    features, paths = [], []
    with Progress(console=Console(stderr=True), disable=not Console(stderr=True).is_terminal) as progress:
        task = progress.add_task("images", total=len(files))
        for images, part in reid.batches(files, skip=True):
            features.append(part)
            paths += images
            progress.update(task, advance=len(images))
    if features:
        index.add(np.concatenate(features), paths)
