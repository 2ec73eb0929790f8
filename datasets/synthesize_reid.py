"""Write two domains of procedural people in the trees and names of Market-1501 and DukeMTMC-reID.

A stand-in for the real sets, which may not be passed on: `python datasets/synthesize_reid.py --out data/synthetic
--scale small --seed 0`. See synthetic_reid.md beside this file.
"""

import argparse
import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from reid_cameras import Camera, background, sample_camera, shade_person, take
from reid_domains import DOMAINS, SCALES, Counts, Domain
from reid_people import Person, Pose, paint_person, sample_person
from rich.progress import track
from stand_in import MARKER, Parser, check_place, fail, in_processes, run, stream

# Raised whenever the same seed gives other pictures.
EDITION = 2
# Where configs and users keep the real sets: a stand-in there would be read in their place.
REAL_NAMES = {
    *(domain.folder.lower() for domain in DOMAINS),
    *("msmt17_v1", "msmt17_v2", "cuhk03-np", "veri", "vehicleid_v1.0", "veri-wild"),
}
REAL_PLACES = (Path("data"), Path(__file__).parents[1] / "data")
SIZE = (128, 64)
CANVAS = (256, 128)
CHUNK = 64
# Words of the random streams; every picture has its own stream, so workers can share the work in any way.
PLAN, IDENTITY, CAMERA, TRACK, PICTURE = range(5)


@dataclass(frozen=True)
class Shot:
    """One picture to be made. `identity` seeds the person; the file's label may differ (0 and -1 in Market)."""

    domain: int
    split: str
    label: int
    identity: int
    camera: int
    number: int
    quality: str = "good"


def share(rng: np.random.Generator, total: int, parts: int, at_least: int, at_most: int | None = None) -> np.ndarray:
    """Split a total into random parts within bounds."""
    counts = np.full(parts, at_least)
    weights = rng.uniform(0.5, 1.5, parts)
    while (left := total - counts.sum()) > 0:
        room = np.ones(parts, bool) if at_most is None else counts < at_most
        chosen = rng.choice(parts, min(left, room.sum()), replace=False, p=weights * room / (weights * room).sum())
        counts[chosen] += 1
    return counts


def pids(rng: np.random.Generator, counts: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Disjoint, shuffled identity numbers for train, test and distractors."""
    sizes = [counts.train_ids, counts.test_ids, counts.distractor_ids]
    numbers = rng.permutation(np.arange(2, 2 + sum(sizes)))
    train, test, others = np.split(numbers, np.cumsum(sizes)[:2])
    return np.sort(train), np.sort(test), np.sort(others)


def plan(domain: int, scale: str, seed: int) -> list[Shot]:
    """List every picture of a domain."""
    counts = DOMAINS[domain].counts[scale]
    rng = stream(seed, PLAN, domain)
    train, test, others = pids(rng, counts)
    shots: list[Shot] = []

    def add(split: str, pid: int, cameras: np.ndarray, label: int | None = None, quality: str = "good") -> None:
        for camera in cameras:
            label_ = int(pid) if label is None else label
            shots.append(Shot(domain, split, label_, int(pid), int(camera), len(shots), quality))

    for pid, images in zip(train, share(rng, counts.train, counts.train_ids, at_least=2)):
        add("bounding_box_train", pid, spread(rng, images, counts.cameras))
    seen = share(rng, counts.query, counts.test_ids, at_least=2, at_most=counts.cameras)
    for pid, cameras, images in zip(test, seen, share(rng, counts.gallery, counts.test_ids, counts.cameras)):
        places = rng.permutation(counts.cameras)[:cameras]
        add("query", pid, places)
        add("bounding_box_test", pid, places[np.arange(images) % cameras])
    for pid, images in zip(others, share(rng, counts.distractors, counts.distractor_ids, at_least=1)):
        market = DOMAINS[domain].name == "market"
        label, quality = (0, "bad") if market else (None, "good")
        add("bounding_box_test", pid, np.full(images, rng.integers(counts.cameras)), label, quality)
    for _ in range(counts.junk):
        add("bounding_box_test", rng.choice(test), rng.integers(counts.cameras, size=1), -1, "junk")
    return shots


def spread(rng: np.random.Generator, images: int, cameras: int) -> np.ndarray:
    """Cameras of a training identity's images: at least two cameras, about evenly."""
    seen = rng.permutation(cameras)[: rng.integers(2, cameras + 1)]
    return seen[np.arange(images) % len(seen)]


def file_name(shot: Shot) -> str:
    """Market-1501: 0002_c1s1_000451_03.jpg. DukeMTMC-reID: 0005_c2_f0046985.jpg."""
    label = "-1" if shot.label < 0 else f"{shot.label:04d}"
    if DOMAINS[shot.domain].name == "market":
        return f"{label}_c{shot.camera + 1}s{1 + shot.identity % 3}_{shot.number + 1:06d}_{1 + shot.number % 4:02d}.jpg"
    return f"{label}_c{shot.camera + 1}_f{shot.number + 1:07d}.jpg"


@functools.lru_cache(maxsize=32)
def camera_of(seed: int, domain: int, index: int) -> Camera:
    """The camera with this index."""
    return sample_camera(stream(seed, CAMERA, domain, index), DOMAINS[domain].cameras, CANVAS)


@functools.lru_cache(maxsize=4096)
def person_of(seed: int, domain: int, identity: int) -> Person:
    """The person with this number."""
    return sample_person(stream(seed, IDENTITY, domain, identity), DOMAINS[domain].wardrobe)


def pose_of(seed: int, shot: Shot, rng: np.random.Generator, camera: Camera, domain: Domain) -> Pose:
    """Each passage before a camera has its own direction; the step and the detector's box vary by picture."""
    track_rng = stream(seed, TRACK, shot.domain, shot.identity, shot.camera)
    yaw = camera.heading + track_rng.choice([0.0, math.pi]) + track_rng.normal(0, 0.5) + rng.normal(0, 0.35)
    loose = {"good": 1.0, "junk": 3.0, "bad": 4.0}[shot.quality] * domain.jitter
    height, width = CANVAS
    tall = height * (0.9 + rng.normal(0, loose))
    return Pose(
        yaw=yaw,
        phase=rng.uniform(0, 2 * math.pi),
        stride=rng.uniform(0.15, 0.6),
        elevation=camera.elevation,
        x=width * (0.5 + rng.normal(0, loose)),
        y=(height - tall) / 2 + height * rng.normal(0, loose * 0.6),
        height=tall,
    )


def add_passer_by(rng: np.random.Generator, canvas: np.ndarray, domain: Domain, elevation: float) -> None:
    """Somebody else, half out of the box, behind the person."""
    height, width = CANVAS
    side = rng.choice([-0.02, 1.02])
    other = sample_person(rng, domain.wardrobe)
    tall = height * rng.uniform(0.75, 0.95)
    paint_person(canvas, other, Pose(rng.uniform(0, 6.28), 1.0, 0.3, elevation, width * side, height * 0.04, tall))


def add_obstacle(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """A post, or a car or bush that hides the legs."""
    height, width = CANVAS
    colour = tuple(float(c) for c in rng.uniform(40, 200, 3))
    if rng.random() < 0.4:
        x, half = int(rng.uniform(0.1, 0.9) * width), int(rng.uniform(3, 9))
        cv2.rectangle(canvas, (x - half, 0), (x + half, height), colour, -1)
    elif rng.random() < 0.5:
        cv2.rectangle(canvas, (0, int(rng.uniform(0.65, 0.85) * height)), (width, height), colour, -1)
    else:
        centre = (int(rng.choice([0, width])), int(rng.uniform(0.6, 0.9) * height))
        cv2.ellipse(canvas, centre, (int(width * 0.45), int(height * 0.22)), 0, 0, 360, colour, -1)


def render(shot: Shot, seed: int) -> np.ndarray:
    """Make one picture: RGB (128, 64, 3), uint8."""
    domain, rng = DOMAINS[shot.domain], stream(seed, PICTURE, shot.domain, shot.number)
    camera = camera_of(seed, shot.domain, shot.camera)
    canvas = background(rng, camera, CANVAS)
    if rng.random() < domain.occlusion:
        add_passer_by(rng, canvas, domain, camera.elevation)
    mask = np.zeros(CANVAS, np.uint8)
    if shot.quality != "bad" or rng.random() < 0.5:
        pose = pose_of(seed, shot, rng, camera, domain)
        mask = paint_person(canvas, person_of(seed, shot.domain, shot.identity), pose)
    picture = shade_person(rng, canvas, mask, camera)
    if rng.random() < (1.0 if shot.quality == "junk" else domain.occlusion):
        add_obstacle(rng, picture)
    return take(rng, picture, camera, SIZE)


def write_chunk(job: tuple[Path, int, list[Shot]]) -> int:
    """Make and write some pictures; returns how many."""
    out, seed, shots = job
    cv2.setNumThreads(1)
    for shot in shots:
        path = out / DOMAINS[shot.domain].folder / shot.split / file_name(shot)
        picture = cv2.cvtColor(render(shot, seed), cv2.COLOR_RGB2BGR)
        data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
        partial = path.with_suffix(".part")
        partial.write_bytes(data)
        os.replace(partial, path)
    return len(shots)


def note(scale: str, seed: int) -> str:
    """First line of the marker: what made the folder's content."""
    return (
        "Procedural pictures, no real people. "
        f"Made by datasets/synthesize_reid.py, edition {EDITION}: --scale {scale} --seed {seed}"
    )


def check_real_place(out: Path) -> None:
    """Refuse a folder that real data use."""
    path = out.resolve()
    inside = [place for place in (path, *path.parents) if place.name.lower() in REAL_NAMES]
    if inside or path in [place.resolve() for place in REAL_PLACES]:
        beside = inside[-1].parent if inside else path
        fail(f"--out {out}: real data sets belong there; name a folder of its own, such as {beside / 'synthetic'}")


def synthesize(out: Path, scale: str, seed: int, workers: int) -> int:
    """Write both domains below a folder, unless they are there; an interrupted run is done again.

    Args:
        out: A new or empty folder, or one that an earlier call with the same scale and seed made.
        scale: One of SCALES.
        seed: 0 or more.
        workers: Number of processes. The pictures do not depend on it.

    Returns:
        The number of pictures of both domains.
    """
    shots = [shot for domain in range(len(DOMAINS)) for shot in plan(domain, scale, seed)]
    check_real_place(out)
    if len(check_place(out, note(scale, seed))) == 1:  # a second line tells that they are not all there
        return len(shots)
    out.mkdir(parents=True, exist_ok=True)
    marker = out / MARKER
    marker.write_text(note(scale, seed) + "\nUnfinished: run the script again.\n")
    for domain in DOMAINS:
        for split in ("bounding_box_train", "bounding_box_test", "query"):
            (out / domain.folder / split).mkdir(parents=True, exist_ok=True)
    jobs = [(out, seed, shots[i : i + CHUNK]) for i in range(0, len(shots), CHUNK)]
    written = in_processes(write_chunk, jobs, workers)
    for _ in track(written, description=f"Drawing {len(shots)} pictures", total=len(jobs)):
        pass
    marker.write_text(note(scale, seed) + "\n")
    return len(shots)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder, for the stand-in alone")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--seed", type=int, default=0, help="random seed, 0 or more (default: 0)")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="number of processes (default: one a core); the pictures do not depend on it",
    )
    args = parser.parse_args(argv)
    if args.seed < 0:
        fail(f"--seed {args.seed}: expected 0 or more")
    if args.workers < 1:
        fail(f"--workers {args.workers}: expected 1 or more")
    number = synthesize(args.out, args.scale, args.seed, args.workers)
    print(f"{number} pictures in {args.out}")


if __name__ == "__main__":
    run(main, "interrupted; the same command makes the tree anew")
