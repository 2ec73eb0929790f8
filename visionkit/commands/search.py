"""Find the images of a gallery index that look most like a query.

visionkit search query.jpg crops.index --topk 20 --sheet found.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from visionkit.errors import VisionKitError
from visionkit.files import check_no_folder, check_writable

QUERIES, COLUMNS = 20, 50  # on a sheet, which must not grow beyond what its format can hold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``visionkit search``."""
    parser.add_argument("query", help="an image, or a folder of images")
    parser.add_argument("index", help="an index: the folder written by visionkit index")
    parser.add_argument("--weights", help="the checkpoint that made the index, if it was moved since")
    parser.add_argument("--topk", type=int, default=10, metavar="K", help="number of images to list (default: 10)")
    parser.add_argument(
        "--approximate", choices=("hnsw", "ivf"), help="a faster search that may miss a few images (needs faiss)"
    )
    parser.add_argument("--sheet", metavar="FILE", help="also draw the images found, as .png, .jpg, .webp or .pdf")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def run(options: argparse.Namespace) -> int:
    """Print distance and path of each answer; a line with the query's name comes first where there are several."""
    from visionkit.apis import ReIDInferencer, as_list
    from visionkit.reid.gallery import GalleryIndex
    from visionkit.reid.pictures import picture_format

    if options.topk < 1:
        raise VisionKitError(f"--topk: expected at least 1, got {options.topk}")
    if options.sheet:
        # a file that cannot be written is told before the work
        picture_format(options.sheet)
        check_no_folder(options.sheet, "--sheet")
        check_writable(options.sheet, "--sheet")
    index = GalleryIndex.load(options.index)
    weights = options.weights or index.weights
    if not weights:
        raise VisionKitError(f"--weights: {options.index} names no checkpoint; give that of {index.model}")
    reid = ReIDInferencer(weights, device=options.device)
    index.check_model(reid.model_name)
    queries = as_list(options.query)
    answers = index.search(reid.features(queries), options.topk, options.approximate, reid.device)
    for query, matches in zip(queries, answers):
        if len(queries) > 1:
            print(query)
        for match in matches:
            print(f"{match.distance:.4f}  {match.path}")
    if options.sheet:
        draw(queries, answers, options.sheet)
    return 0


def draw(queries: list[str], answers: list, file: str) -> None:
    """A sheet of the answers; what finds no place on it is told."""
    from visionkit.reid.pictures import Ranked, RankedList, draw_ranked_lists

    lists = [
        RankedList(query, caption(query), [Ranked(match.path, match.distance, None) for match in matches])
        for query, matches in zip(queries[:QUERIES], (matches[:COLUMNS] for matches in answers))
    ]
    draw_ranked_lists(lists, file, "Nearest images")
    found = max(map(len, answers))
    if len(queries) > QUERIES or found > COLUMNS:
        shown = f"{min(len(queries), QUERIES)} of {len(queries)} queries, {min(found, COLUMNS)} of {found} images each"
        print(f"{file}: shows the first {shown}", file=sys.stderr)


def caption(query: str) -> str:
    """Of the query's name what fits below its image; the images of one camera differ at the end of their names."""
    name = Path(query).stem
    return name if len(name) <= 12 else f"{name[:3]}…{name[-8:]}"
