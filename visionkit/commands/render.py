"""New views of a photo, of each photo in a folder, or of a capture.

visionkit render photo.jpg -o views.mp4
visionkit render photo.jpg --trajectory spiral --size 320
visionkit render capture/ --fit

A .json file for --trajectory lists 2 or more key frames, as [{"azimuth": -20}, {"azimuth": 20, "distance": 0.9}]:
azimuth, -720 to 720 degrees to the right of the input view; elevation, -89 to 89 degrees above it; distance, 0.05 to 20
times the input camera's. What is left out is 0, 0 and 1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from visionkit.commands.captures import open_capture
from visionkit.errors import VisionKitError
from visionkit.progress import progress

if TYPE_CHECKING:
    import numpy as np

    from visionkit.nvs.cameras import Camera
    from visionkit.nvs.captures import Scene
    from visionkit.nvs.scene_field import SceneField

FRAMES = 48
SHEET = 12  # frames on a contact sheet
FPS = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``visionkit render``."""
    parser.add_argument("input", metavar="INPUT", help="a photo, a folder of photos, or a capture with cameras")
    parser.add_argument(
        "-o", "--out", help="the .mp4 file to write, a contact sheet beside it; for a folder of photos a folder"
    )
    parser.add_argument(
        "--weights",
        help="a checkpoint of visionkit train, or a .safetensors file (default: the bundled small model)",
    )
    parser.add_argument(
        "--trajectory",
        metavar="PATH",
        help="swing, orbit, spiral, dolly or a .json file (default: swing; for a capture its own cameras)",
    )
    parser.add_argument(
        "--frames",
        type=int,
        help=f"number of frames along a path (default: {FRAMES}); a capture's own cameras give one each",
    )
    parser.add_argument("--degrees", type=float, help="reach of swing, orbit or spiral (default: 25, 40 or 15)")
    parser.add_argument(
        "--size", type=int, metavar="PIXELS", help="long side of the views (default: the model's; with --fit 160)"
    )
    parser.add_argument(
        "--fov",
        type=float,
        metavar="DEGREES",
        help="field of view across the long side, of a photo or of a path; --fit knows it",
    )
    parser.add_argument(
        "--distance",
        type=float,
        help="distance of the camera from what it looks at, in scene sizes; --fit knows it",
    )
    parser.add_argument("--fit", action="store_true", help="fit a radiance field to the capture, without weights")
    parser.add_argument("--start", action="store_true", help="begin --fit with the model's prediction for one photo")
    parser.add_argument("--steps", type=int, help="optimisation steps of --fit (default: 250)")
    parser.add_argument(
        "--resolution",
        type=int,
        metavar="CELLS",
        help="cells along an axis of the finest grid of --fit (default: 128)",
    )
    parser.add_argument("--seed", type=int, help="random seed of --fit (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def run(options: argparse.Namespace) -> int:
    """Choose by what INPUT is."""
    from visionkit.nvs.captures import is_capture
    from visionkit.nvs.trajectories import curve

    source = Path(options.input)
    if not source.exists():
        raise VisionKitError(f"{source}: no such file or folder; give a photo, a folder of photos or a capture")
    capture = is_capture(source)
    if capture and not options.fit and not options.trajectory:
        refuse(options, ("frames", "degrees", "fov", "distance"), "is for a path; give --trajectory too")
    if options.frames is None:
        options.frames = FRAMES
    curve(options.trajectory or "swing", options.frames, options.degrees)  # a typo shows before the work
    if options.fit:
        if not capture:
            raise VisionKitError(f"{source}: --fit needs a capture with cameras; `visionkit prepare_capture` makes one")
        if not options.trajectory:
            refuse(options, ("degrees",), "is for swing, orbit and spiral; give --trajectory too")
        refuse(options, ("fov", "distance"), "is for a photo; a capture tells its own, leave it out with --fit")
        if not options.start:
            refuse(options, ("weights",), "--fit uses none; give --start to begin at their prediction")
        else:
            refuse(options, ("resolution",), "--start has one of its own; leave it out")
        return fit(source, options)
    refuse(options, ("start", "steps", "resolution", "seed"), "is for --fit; give both")
    return render_capture(source, options) if capture else render_photos(source, options)


def refuse(options: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Raises VisionKitError if one of the options is given."""
    for name in names:
        if getattr(options, name) is not None and getattr(options, name) is not False:
            raise VisionKitError(f"--{name}: {why}")


def render_photos(source: Path, options: argparse.Namespace) -> int:
    """One video for each photo; in a folder, one that cannot be used is told and passed over."""
    from visionkit.nvs.captures import photos_in
    from visionkit.nvs.inferencer import NVSInferencer
    from visionkit.nvs.outputs import video_files
    from visionkit.nvs.pictures import with_depths

    several = source.is_dir()
    photos = photos_in(source) if several else [source]
    outs = video_files(photos, options.out, several)
    nvs, failed = NVSInferencer(options.weights, options.device), 0
    for photo, out in zip(photos, outs):
        try:
            view, note = nvs.read(photo, options.fov, options.distance)
        except VisionKitError as error:
            if not several:
                raise
            print(f"skipped: {error}")
            failed += 1
            continue
        if note:
            print(f"{photo}: {note}")
        views = nvs.render(view, options.trajectory or "swing", options.frames, options.size, degrees=options.degrees)
        frames = with_depths(((None, each.rgb, each.depth) for each in views), *nvs.reach(view.distance))
        write(frames, out, options.frames, first=view.image)
    if failed == len(photos):
        raise VisionKitError(f"{source}: none of its {failed} photos can be used, for the reasons above; give others")
    return 0


def render_capture(source: Path, options: argparse.Namespace) -> int:
    """What the middle photo of a capture tells of the others, beside these; or a trajectory from it."""
    from PIL import Image

    from visionkit.nvs.cameras import field_of_view
    from visionkit.nvs.inferencer import NVSInferencer, square_pixels
    from visionkit.nvs.metrics import check_scored
    from visionkit.nvs.outputs import video_files
    from visionkit.nvs.pictures import with_depths

    scene = open_capture(source)
    out = video_files([source], options.out, False)[0]
    nvs, row = NVSInferencer(options.weights, options.device), len(scene) // 2
    own = float(scene.normalised().scene.distances(nvs.centre)[row])
    if options.trajectory:
        if options.fov is not None or options.distance is not None:
            photo, focal = square_pixels(scene, row)
            fov = field_of_view(focal, max(photo.shape)) if options.fov is None else options.fov
            view, _ = nvs.read(Image.fromarray(photo), fov, own if options.distance is None else options.distance)
        else:
            view = nvs.view_in(scene, row, own)
        views = nvs.render(view, options.trajectory, options.frames, options.size, degrees=options.degrees)
        frames = with_depths(((None, each.rgb, each.depth) for each in views), *nvs.reach(view.distance))
        write(frames, out, options.frames)
        return 0
    check_scored(nvs.model.img_size, options.size or max(nvs.model.img_size))
    scores = []

    def compared() -> Iterator[tuple[np.ndarray, ...]]:
        for other, (_, truth, view) in enumerate(nvs.views_of(scene, row, options.size)):
            if other != row:
                scores.append(_score(view.rgb, truth))
            yield truth, view.rgb, view.depth

    print(f"{source}: photo | rendered from {scene.names[row]} alone | depth")
    write(with_depths(compared(), *nvs.reach(own)), out, len(scene), fps=3)
    _tell_scores("other photos", scores)
    return 0


def fit(source: Path, options: argparse.Namespace) -> int:
    """Fit a field, score it on every eighth photo, render a path."""
    from visionkit.devices import choose_device
    from visionkit.nvs import fit as fitting
    from visionkit.nvs.metrics import check_scored
    from visionkit.nvs.outputs import check_targets, video_files
    from visionkit.nvs.pictures import depth_range, save_picture, stacked, with_depth

    scene = open_capture(source)
    changes = dict(seed=options.seed, long_side=options.size, steps=options.steps)
    if options.resolution is not None:
        changes.update(colour=options.resolution, density=options.resolution // 2)
    settings = fitting.Settings()._replace(**{key: value for key, value in changes.items() if value is not None})
    fitting.check(settings)
    device = choose_device(options.device)
    rows, held_out = fitting.split(scene)
    for row in held_out:
        check_scored(scene.sizes[row], settings.long_side)
    out = video_files([source], options.out, False)[0]
    held_out_sheet = out.with_name(f"{out.stem}_held_out.png")
    check_targets([held_out_sheet])
    start = None
    if options.start:
        from visionkit.nvs.inferencer import NVSInferencer
        from visionkit.nvs.warm_start import WarmStart

        start = WarmStart(NVSInferencer(options.weights, device), scene, rows[len(rows) // 2])
        scene, settings = start.scene, start.settings(settings)
    print(f"fitting {len(rows)} photos, {len(held_out)} held out", flush=True)
    began = time.perf_counter()
    with progress("fitting", settings.steps) as advance:
        model = fitting.fit(scene, rows, settings, lambda step, model: advance(), start, device)
    print(f"fitted in {time.perf_counter() - began:.0f} s")

    views = score_held_out(model, scene, held_out, settings.long_side)
    depths = depth_range([depth for *_, depth in views], model.bounds.near, model.bounds.middle)
    save_picture(stacked([with_depth(*view, *depths) for view in views]), held_out_sheet)
    print(f"wrote {held_out_sheet}: photo | rendered | depth of those held out")
    path = settings.long_side, options.trajectory, options.frames, options.degrees
    cameras = fitting.path(scene, rows, model.bounds, *path)
    frames = (with_depth(None, *_rendered(model, camera), *depths) for camera in cameras)
    write(frames, out, options.frames)
    return 0


def score_held_out(
    model: SceneField, scene: Scene, rows: list[int], long_side: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Print how near the fitted field comes to photos it has not seen; returns (photo, rendered, depth) of each.

    Pictures are (H, W, 3) uint8, depths (H, W).
    """
    scores, views = [], []
    for row in rows:
        camera = scene.camera(row, scene.target_size(row, long_side))
        truth = scene.image(row, camera.size)
        rgb, depth = _rendered(model, camera)
        scores.append(_score(rgb, truth))
        print(f"{scene.names[row]}: PSNR {scores[-1][0]:.2f} dB, SSIM {scores[-1][1]:.3f}")
        views.append((truth, rgb, depth))
    _tell_scores("held-out photos", scores)
    return views


def write(frames: Iterable[np.ndarray], out: Path, total: int, fps: int = FPS, first: np.ndarray | None = None) -> None:
    """The video of frames (H, W, 3) uint8, and beside it a contact sheet of frames spread over it."""
    import numpy as np

    from visionkit.nvs.outputs import sheet_of
    from visionkit.nvs.pictures import contact_sheet, framed, save_picture
    from visionkit.nvs.video import VideoWriter

    chosen = set(np.linspace(0, total - 1, min(SHEET, total)).round().astype(int).tolist())
    kept = []
    with progress(f"rendering {out.name}", total) as advance, VideoWriter(out, fps) as video:
        for number, frame in enumerate(frames):
            video.add(frame)
            if number in chosen:
                kept.append(frame)
            advance()
    if first is not None:
        kept.insert(0, framed(first, kept[0].shape))
    sheet = sheet_of(out)
    save_picture(contact_sheet(kept), sheet)
    print(f"wrote {out} and {sheet}")


def _tell_scores(what: str, scores: list) -> None:
    import numpy as np

    if scores:
        decibel, similarity = np.mean(scores, axis=0)
        print(f"mean of {len(scores)} {what}: PSNR {decibel:.2f} dB, SSIM {similarity:.3f}")


def _rendered(model: SceneField, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    rgb, depth = model.render(camera)
    return (rgb * 255).round().astype("uint8"), depth


def _score(rgb: np.ndarray, truth: np.ndarray) -> list[float]:
    """PSNR and SSIM of a picture (H, W, 3) uint8."""
    import torch

    from visionkit.nvs.metrics import psnr, ssim

    pair = [torch.from_numpy(each.copy()).movedim(-1, 0)[None].double() / 255 for each in (rgb, truth)]
    return [float(psnr(*pair)), float(ssim(*pair))]
