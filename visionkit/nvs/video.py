"""Videos in and out: sharp frames of a recording; MP4 files and contact sheets of what was rendered."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np

from visionkit.errors import VisionKitError
from visionkit.extras import require
from visionkit.files import beside

STILL = 1.5  # mean difference of two thumbnails, of 255, below which a camera has not moved


def sharp_frames(path: str | os.PathLike, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """The sharpest frame of each of ``count`` equal stretches of a video, without repetitions.

    Yields:
        (number, (H, W, 3) uint8).

    Raises:
        VisionKitError: no frame can be decoded.
    """
    sharpness = []
    for frame in _frames(path):
        grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        grey = cv2.resize(grey, (320, max(1, round(320 * grey.shape[0] / grey.shape[1]))), interpolation=cv2.INTER_AREA)
        sharpness.append(cv2.Laplacian(grey, cv2.CV_64F).var())
    if not sharpness:
        raise VisionKitError(f"{path}: no frame can be decoded; convert the video to MP4 (H.264)")
    stretches = np.array_split(np.arange(len(sharpness)), min(count, len(sharpness)))
    chosen = {int(stretch[np.argmax(np.take(sharpness, stretch))]) for stretch in stretches}
    last = None
    for number, frame in enumerate(_frames(path)):
        if number in chosen:
            small = cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32)
            if last is None or np.abs(small - last).mean() > STILL:
                last = small
                yield number, frame[..., ::-1]


def _frames(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """All frames, BGR, upright."""
    video = cv2.VideoCapture(os.path.abspath(path))  # FFmpeg takes what is before a colon for a protocol
    try:
        while True:
            good, frame = video.read()
            if not good:
                return
            yield frame
    finally:
        video.release()


class VideoWriter:
    """Writes an H.264 MP4 under a temporary name, and renames it when closed without an error.

    >>> with VideoWriter("orbit.mp4", fps=24) as video:
    ...     video.add(frame)  # (H, W, 3) uint8

    Args:
        path: file to write, ``*.mp4``.
        fps: frames a second.
    """

    def __init__(self, path: str | os.PathLike, fps: int = 24) -> None:
        self.path, self.fps = Path(path), fps
        self.container = self.stream = None
        self.open = ExitStack()

    def __enter__(self) -> "VideoWriter":
        return self

    def add(self, frame: np.ndarray) -> None:
        """Appends a frame (H, W, 3) uint8; odd sides lose a pixel, which H.264 asks for."""
        av = require("av", "nvs")
        frame = np.ascontiguousarray(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])
        if self.container is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary, options = self.open.enter_context(beside(self.path)), {"movflags": "faststart"}
            self.container = self.open.enter_context(
                av.open(os.path.abspath(temporary), "w", format="mp4", options=options)
            )
            # with frames between others (bf) x264 chooses by memory that it never wrote, and no two runs are alike
            self.stream = self.container.add_stream("libx264", rate=self.fps, options={"crf": "18", "bf": "0"})
            self.stream.height, self.stream.width = frame.shape[:2]
            self.stream.pix_fmt = "yuv420p"
            self.open.push(self._finish)
        self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def __exit__(self, *problem: object) -> None:
        self.open.__exit__(*problem)

    def _finish(self, kind: type | None, *rest: object) -> None:
        if kind is None:
            self.container.mux(self.stream.encode())
