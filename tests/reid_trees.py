"""Writes tiny re-identification data sets with the file names of the real ones, for any test that needs one."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, seed: int, size: tuple[int, int] = (16, 8)) -> Path:
    """A small picture of its own colour with some noise; ``size`` is (H, W)."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, 3) + rng.integers(-20, 20, (*size, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def market_name(pid: int, cam: int, frame: int) -> str:
    return f"{pid:04d}_c{cam}s1_{frame:06d}_01.jpg" if pid >= 0 else f"-1_c{cam}s1_{frame:06d}_01.jpg"


def duke_name(pid: int, cam: int, frame: int) -> str:
    return f"{pid:04d}_c{cam}_f{frame:07d}.jpg"


def write_market(root: Path, name=market_name, cams: int = 3, size: tuple[int, int] = (16, 8)) -> Path:
    """A Market-1501 tree in ``root``: train pids 2, 7, 11 and test pids 1, 3, one image in each camera and one more in
    camera 1, gallery with a distractor (0) and a junk box (-1). Returns ``root``."""
    frame = 0
    for folder, pids in (("bounding_box_train", (2, 7, 11)), ("bounding_box_test", (1, 3))):
        for pid in pids:
            for cam in (*range(1, cams + 1), 1):
                frame += 1
                write_image(root / folder / name(pid, cam, frame), 1000 * pid + frame, size)
    for pid in (1, 3):
        write_image(root / "query" / name(pid, 1, 900 + pid), 1000 * pid, size)
    for pid in (0, -1):
        write_image(root / "bounding_box_test" / name(pid, 1, 990 + pid), 7, size)
    return root


def write_duke(root: Path, size: tuple[int, int] = (16, 8)) -> Path:
    """The same people with DukeMTMC-reID's names (and no junk, which that set does not have)."""
    write_market(root, duke_name, size=size)
    for path in (root / "bounding_box_test").glob("-*"):
        path.unlink()
    return root
