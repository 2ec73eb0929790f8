"""Write procedural scenes, seen by a hand-held camera, in the tree of MVImgNet.

A stand-in for the real set: `python datasets/synthesize_views.py --out data/synthetic_views --scenes 1000`. Every scene
has images, COLMAP's files, depth and points. See synthetic_views.md beside this file, also for how exact they are.
"""

import argparse
import io
import json
import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.progress import track
from stand_in import MARKER, Parser, check_place, fail, in_processes, run, stream
from views_colmap import sample_points, write_model
from views_render import Tracer, render_views
from views_scenes import categories, sample_world

# Raised whenever the same seed gives other pictures.
EDITION = 1
CPU_PIXELS = 80_000
# Words of the random streams.
ORDER, SCENE = range(2)


@dataclass(frozen=True)
class Settings:
    """What the pictures depend on."""

    scenes: int
    test_scenes: int
    views: int
    size: tuple[int, int]
    seed: int
    per_edge: int = 3
    points: int = 60

    def __str__(self) -> str:
        return (
            f"--scenes {self.scenes} --test-scenes {self.test_scenes} --views {self.views} "
            f"--size {self.size[0]}x{self.size[1]} --seed {self.seed}"
        )


def plan(settings: Settings) -> list[tuple[str, int]]:
    """Category and number of every scene; training scenes come first, and categories take turns."""
    jobs: list[tuple[str, int]] = []
    for test, count in ((False, settings.scenes), (True, settings.test_scenes)):
        names = categories(test)
        order = stream(settings.seed, ORDER, int(test)).permutation(len(names))
        jobs += [(names[order[i % len(names)]], len(jobs) + i) for i in range(count)]
    return jobs


def hand_held_path(rng: np.random.Generator, views: int) -> np.ndarray:
    """Poses (V, 3, 4) of a walk around the origin: 60 to 100 degrees, unsteady, its middle facing +y."""
    along = np.linspace(-1, 1, views)
    arc = math.radians(rng.uniform(60, 100)) * rng.choice([-1, 1])
    azimuth = -math.pi / 2 + arc / 2 * along + _wobble(rng, along, 0.04)
    elevation = math.radians(rng.uniform(14, 32)) + _wobble(rng, along, 0.08)
    distance = rng.uniform(1.4, 1.7) * (1 + _wobble(rng, along, 0.05))
    flat = np.cos(elevation)
    eye = distance * np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])
    target = np.stack([_wobble(rng, along, 0.03), _wobble(rng, along, 0.03), 0.2 + _wobble(rng, along, 0.03)])
    roll = _wobble(rng, along, 0.04)
    return np.stack([_pose(*each) for each in zip(eye.T, target.T, roll)])


def _wobble(rng: np.random.Generator, along: np.ndarray, size: float) -> np.ndarray:
    waves = np.sin(np.outer([2.0, 5.0, 11.0], along) + rng.uniform(0, 2 * math.pi, (3, 1)))
    return size * rng.normal(0, [1.0, 0.5, 0.25]) @ waves


def _pose(eye: np.ndarray, target: np.ndarray, roll: float) -> np.ndarray:
    """A camera to world pose (3, 4): x right, y down, z forward."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    cos, sin = math.cos(roll), math.sin(roll)
    return np.stack([cos * right + sin * down, cos * down - sin * right, forward, eye], axis=1)


def make_scene(category: str, number: int, settings: Settings, device: str) -> dict[str, np.ndarray]:
    """Renders one scene: images (V, H, W, 3) uint8, depths (V, H, W) float32, c2w (V, 3, 4), focal, points."""
    rng = stream(settings.seed, SCENE, number)
    tracer = Tracer(sample_world(category, rng), device)
    c2w = hand_held_path(rng, settings.views)
    focal = rng.uniform(0.65, 0.85) * max(settings.size)
    with torch.inference_mode():
        # On a CPU as many views together as its caches hold, on a GPU all.
        together = max(1, CPU_PIXELS // math.prod(settings.size)) if device == "cpu" else settings.views
        chunks = np.split(c2w, range(together, settings.views, together))
        views = [render_views(tracer, chunk, focal, settings.size, settings.per_edge) for chunk in chunks]
    images, depths = (np.concatenate(parts) for parts in zip(*views))
    points = sample_points(rng, images, depths, c2w, focal, settings.points)
    return dict(images=images, depths=depths, c2w=c2w, focal=focal, points=points)


def scene_folder(out: Path, category: str, number: int) -> Path:
    """Where a scene lies."""
    return out / category / f"{number:06d}"


def write_scene(job: tuple[Path, str, int, Settings, str]) -> int:
    """Makes and writes one scene, unless it is there; a half-written one never bears its name."""
    out, category, number, settings, device = job
    folder = scene_folder(out, category, number)
    if folder.is_dir():
        return number
    scene = make_scene(category, number, settings, device)
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    names = [f"{i + 1:03d}.jpg" for i in range(settings.views)]
    for name, image in zip(names, scene["images"]):
        picture = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        (partial / "images" / name).write_bytes(picture.tobytes())
    write_model(partial / "sparse" / "0", names, scene["c2w"], scene["focal"], settings.size, scene["points"])
    depths = io.BytesIO()  # of a file NumPy does not say that the disk is full
    np.save(depths, scene["depths"])
    (partial / "depth.npy").write_bytes(depths.getvalue())
    os.rename(partial, folder)
    return number


def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def note(settings: Settings) -> str:
    """First line of the marker: what made the folder's content."""
    return f"Procedural scenes. Made by datasets/synthesize_views.py, edition {EDITION}: {settings}"


def synthesize(out: Path, settings: Settings, workers: int = 1, device: str = "cpu") -> None:
    """Write all scenes below a folder. An interrupted run goes on; finished scenes are left as they are.

    Args:
        out: A new or empty folder, or one that an earlier call with the same settings made.
        settings: See [Settings].
        workers: Number of processes. The pictures do not depend on it.
        device: ``cpu`` or ``cuda``.
    """
    check_place(out, note(settings))
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text(note(settings) + "\n")
    (out / "test_classes.json").write_text(json.dumps(categories(test=True), indent=1) + "\n")
    jobs = [(out, category, number, settings, device) for category, number in plan(settings)]
    rendered = in_processes(write_scene, jobs, workers, begin=_one_thread, chunksize=4)
    for _ in track(rendered, description=f"Rendering {len(jobs)} scenes", total=len(jobs)):
        pass


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or min(map(int, match.groups())) < 8:
        raise argparse.ArgumentTypeError(f"{text!r}: expected HEIGHTxWIDTH of at least 8 pixels, as in 160x90")
    return int(match[1]), int(match[2])


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder, for the stand-in alone")
    parser.add_argument("--scenes", type=int, default=1000, help="number of training scenes")
    parser.add_argument(
        "--test-scenes", type=int, default=50, help="number of scenes of layouts that training never shows"
    )
    parser.add_argument("--views", type=int, default=20, help="views of a scene")
    parser.add_argument("--size", type=_size, default=(160, 90), metavar="HxW", help="pixels of a view")
    parser.add_argument("--seed", type=int, default=0, help="0 or more")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; pictures of the two differ by rounding alone")
    parser.add_argument("--workers", type=int, help="processes (default: one a core, on a GPU one)")
    args = parser.parse_args(argv)
    for name, least in (("scenes", 0), ("test_scenes", 0), ("views", 3), ("seed", 0)):
        if getattr(args, name) < least:
            fail(f"--{name.replace('_', '-')} {getattr(args, name)}: expected {least} or more")
    if not args.scenes + args.test_scenes:
        fail("--scenes 0, --test-scenes 0: expected at least one scene")
    if args.device != "cpu" and not torch.cuda.is_available():
        fail(f"--device {args.device}: no GPU is at hand; use --device cpu")
    workers = args.workers if args.workers is not None else (os.cpu_count() if args.device == "cpu" else 1)
    if workers < 1:
        fail(f"--workers {workers}: expected 1 or more")
    settings = Settings(args.scenes, args.test_scenes, args.views, args.size, args.seed)
    synthesize(args.out, settings, workers, args.device)
    print(f"{args.scenes} training and {args.test_scenes} test scenes of {args.views} views in {args.out}")


if __name__ == "__main__":
    run(main, "interrupted; the same command goes on with the scenes that are missing")
