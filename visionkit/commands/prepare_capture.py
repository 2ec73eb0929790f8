"""Make a capture with cameras from phone photos or a video.

visionkit prepare_capture photos/ capture/
visionkit prepare_capture walk.mp4 capture/ --frames 80
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``visionkit prepare_capture``."""
    parser.add_argument("source", metavar="PHOTOS_OR_VIDEO", help="a folder of photos (HEIC too), or a video")
    parser.add_argument("out", metavar="OUT", help="the folder to write: images, cameras, and a picture of the cameras")
    parser.add_argument("--frames", type=int, default=60, help="number of frames to take of a video (default: 60)")
    parser.add_argument(
        "--max-side", type=int, default=1600, metavar="PIXELS", help="scale larger photos down (default: 1600)"
    )


def run(options: argparse.Namespace) -> int:
    """Print what is left out and the verdict."""
    from visionkit.nvs.prepare import prepare_capture

    say = lambda line: print(f"{line} ...", flush=True)
    verdict = prepare_capture(options.source, options.out, options.frames, options.max_side, say)
    for name, reason in verdict.left_out:
        print(f"left out: {name}: {reason}")
    print(verdict)
    print(f"see {verdict.picture}")
    return 0
