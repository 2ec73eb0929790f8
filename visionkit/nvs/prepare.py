"""From photographs or a video of a place to a capture: photographs, their cameras, and the points that they share.

Structure from motion is COLMAP's, through pycolmap. The result is MVImgNet's tree.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from visionkit.checks import check_counts
from visionkit.errors import VisionKitError
from visionkit.extras import require
from visionkit.files import check_writable, write_image
from visionkit.nvs.captures.photos import DEFAULT_FOCAL, PHOTO_SUFFIXES, focal_from_exif, photos_in, read_photo_file
from visionkit.nvs.video import sharp_frames

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
FEWEST = 3  # photographs that make a capture
FEATURE_SIDE, FEATURES = 1024, 4096  # pixels of the long side in which features are sought, and the most of them
EXHAUSTIVE = 80  # more photographs than this are matched with their neighbours only


class Verdict(NamedTuple):
    """What came of a capture.

    registered: photographs with a camera. total: different photographs given. points: shared points. error: mean
    distance, in pixels, between where points are seen and where they project to. left_out: (file, reason).
    picture: file.
    """

    registered: int
    total: int
    points: int
    error: float
    left_out: tuple[tuple[str, str], ...]
    picture: Path

    def __str__(self) -> str:
        share = f"{self.registered} of {self.total} photos registered, {self.points} points, error {self.error:.2f} px"
        if self.registered == self.total:
            return f"good: {share}"
        if 2 * self.registered >= self.total:
            return f"usable: {share}"
        return f"poor: {share}; take more photos from places between those you have, each overlapping the next by 2/3"


def prepare_capture(
    source: str | os.PathLike,
    out: str | os.PathLike,
    frames: int = 60,
    max_side: int = 1600,
    say: Callable[[str], None] = lambda line: None,
) -> Verdict:
    """Makes a capture, with a picture of the cameras around the points.

    Args:
        source: a folder of photographs, or a video.
        out: folder to write: ``images/``, ``sparse/0/`` and ``cameras.png``.
        frames: number of frames to take of a video.
        max_side: larger photographs are scaled down to this many pixels on the long side.
        say: function that is called with a line on each step of the work.

    Raises:
        VisionKitError: nothing to read, ``out`` is taken, or too few photographs fit together.
    """
    pycolmap = require("pycolmap", "nvs")
    source, out = Path(source), Path(out)
    _check(source, out, frames, max_side)
    work = out.with_name(f".{out.name}.{os.getpid()}.partial")
    quiet, pycolmap.logging.minloglevel = pycolmap.logging.minloglevel, 3
    try:
        (work / "images").mkdir(parents=True)
        if source.is_dir():
            lenses, unreadable, twins = _copy_photos(photos_in(source), work / "images", max_side, say)
        else:
            lenses, unreadable, twins = _copy_frames(source, work / "images", frames, max_side, say), [], []
        if len(lenses) < FEWEST:
            raise VisionKitError(f"{source}: {len(lenses)} photos can be read; expected at least {FEWEST}, better 20")
        model = _structure_from_motion(work, lenses, ordered=not source.is_dir(), say=say)
        if model is None or model.num_reg_images() < FEWEST:
            raise VisionKitError(
                f"{source}: the {len(lenses)} photos do not fit together; take 20 or more around one subject that"
                " holds still, each overlapping the next by 2/3"
            )
        (work / "sparse" / "0").mkdir(parents=True)
        model.write_binary(str(work / "sparse" / "0"))
        _draw(model, work / "cameras.png")
        for leftover in work.glob("features.db*"):
            leftover.unlink()
        shutil.rmtree(out, ignore_errors=True)  # an empty folder, see _check
        os.replace(work, out)
    finally:
        pycolmap.logging.minloglevel = quiet
        shutil.rmtree(work, ignore_errors=True)
    posed = {image.name for image in model.images.values() if image.has_pose}
    alone = [(name, "fits no other photo") for name in sorted(set(lenses) - posed)]
    left_out, total = (*unreadable, *twins, *alone), len(lenses) + len(unreadable)
    error = model.compute_mean_reprojection_error()
    return Verdict(len(posed), total, model.num_points3D(), error, left_out, out / "cameras.png")


def _check(source: Path, out: Path, frames: int, max_side: int) -> None:
    if not source.exists():
        raise VisionKitError(f"{source}: no such file or folder; give a folder of photos or a video")
    if source.is_file() and source.suffix.lower() not in VIDEO_SUFFIXES:
        hint = "put several photos in a folder" if source.suffix.lower() in PHOTO_SUFFIXES else "give photos or a video"
        raise VisionKitError(f"{source}: is no video ({', '.join(VIDEO_SUFFIXES)}); {hint}")
    if not out.name:
        raise VisionKitError(f"{out}: is the folder you are in; give a new one")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise VisionKitError(f"{out}: exists already; give a new folder")
    check_writable(out, "OUT")
    check_counts("", FEWEST, **{"--frames": frames})
    check_counts("", 64, **{"--max-side": max_side})


Lens = tuple[tuple[int, int], float | None]  # size (width, height) and focal length / long side


def _copy_photos(
    files: list[Path], folder: Path, max_side: int, say: Callable
) -> tuple[dict[str, Lens], list[tuple[str, str]], list[tuple[str, str]]]:
    """Upright JPEGs of all that can be read; (file, reason) of those that cannot, and of copies of others."""
    say(f"reading {len(files)} photos")
    lenses, unreadable, twins, seen = {}, [], [], {}
    for file in files:
        try:
            picture = read_photo_file(file)
            focal, _ = focal_from_exif(file)
        except VisionKitError as error:
            unreadable.append((file.name, str(error)))
            continue
        twin = seen.setdefault(hash(picture.tobytes()), file.name)
        if twin != file.name:
            twins.append((file.name, f"is the same as {twin}"))
            continue
        name = f"{file.stem}.jpg"
        if name in lenses:
            name = f"{file.name}.jpg"
        lenses[name] = (_save(picture, folder / name, max_side, focal), focal)
    return lenses, unreadable, twins


def _copy_frames(video: Path, folder: Path, frames: int, max_side: int, say: Callable) -> dict[str, Lens]:
    """The sharpest frames of a video; its lens is unknown."""
    say(f"picking up to {frames} sharp frames")
    lenses = {}
    for number, frame in sharp_frames(video, frames):
        name = f"frame_{number:05d}.jpg"
        lenses[name] = (_save(Image.fromarray(frame), folder / name, max_side, None), None)
    return lenses


def _save(picture: Image.Image, file: Path, max_side: int, focal: float | None) -> tuple[int, int]:
    scale = max_side / max(picture.size)
    if scale < 1:
        picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
    exif = Image.Exif()
    if focal:  # what get_ifd returns is not written before Pillow 11.1
        exif[ExifTags.IFD.Exif] = {ExifTags.Base.FocalLengthIn35mmFilm: round(36 * focal)}
    write_image(picture, file, format="JPEG", quality=95, exif=exif)
    return picture.size


def _structure_from_motion(work: Path, lenses: dict[str, Lens], ordered: bool, say: Callable) -> object | None:
    """The largest model that COLMAP finds, or None."""
    pycolmap = require("pycolmap", "nvs")
    # as text: pycolmap asks a Path for it from within its calls, where SIGTERM would read as a wrong argument
    database, images, models_folder = str(work / "features.db"), str(work / "images"), str(work / "models")
    say(f"finding features in {len(lenses)} photos")
    extraction = pycolmap.FeatureExtractionOptions(max_image_size=FEATURE_SIDE)
    extraction.sift.max_num_features = FEATURES
    for lens in sorted(set(lenses.values()), key=str):  # photographs of one lens share a camera
        names = [name for name, other in lenses.items() if other == lens]
        (width, height), focal = lens
        options = pycolmap.ImageReaderOptions(camera_model="SIMPLE_RADIAL", default_focal_length_factor=DEFAULT_FOCAL)
        if focal:
            options.camera_params = f"{focal * max(width, height)},{width / 2},{height / 2},0"
        pycolmap.extract_features(
            database,
            images,
            image_names=names,
            camera_mode=pycolmap.CameraMode.SINGLE,
            reader_options=options,
            extraction_options=extraction,
        )
    say("matching them")
    if ordered and len(lenses) > EXHAUSTIVE:
        pycolmap.match_sequential(database)
    else:
        pycolmap.match_exhaustive(database)
    say("finding cameras and points")
    os.mkdir(models_folder)
    models = pycolmap.incremental_mapping(database, images, models_folder)
    shutil.rmtree(models_folder)
    return max(models.values(), key=lambda model: model.num_reg_images(), default=None)


def _draw(model: object, file: Path) -> None:
    """Cameras around points, from above and from the side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    posed = [image for image in model.images.values() if image.has_pose]
    poses = np.stack([image.cam_from_world().inverse().matrix() for image in posed])
    points = np.array([point.xyz for point in model.points3D.values()])
    colours = np.array([point.color for point in model.points3D.values()]) / 255
    # Axes of the picture: the mean direction of the images' lower edge is down, the mean view runs into the page.
    down = poses[:, :, 1].mean(axis=0)
    down /= np.linalg.norm(down)
    right = np.cross(down, poses[:, :, 2].mean(axis=0))
    right /= np.linalg.norm(right)
    axes = np.stack([right, down, np.cross(right, down)])
    centre = np.median(points, axis=0)
    points, eyes = (points - centre) @ axes.T, (poses[:, :, 3] - centre) @ axes.T
    ahead = poses[:, :, 2] @ axes.T
    reach = 1.2 * max(np.quantile(np.abs(points), 0.95), np.abs(eyes).max())

    figure = Figure(figsize=(11, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    for plot, (x, y, title) in zip(figure.subplots(1, 2), ((0, 2, "from above"), (0, 1, "from behind"))):
        plot.scatter(points[:, x], points[:, y], s=2, c=colours, linewidths=0)
        for eye, way, image in zip(eyes, ahead, posed):
            plot.annotate(
                "",
                xy=(eye[x] + 0.12 * reach * way[x], eye[y] + 0.12 * reach * way[y]),
                xytext=(eye[x], eye[y]),
                arrowprops=dict(arrowstyle="-|>", color="#c23b22", lw=1.2),
            )
            plot.text(eye[x], eye[y], Path(image.name).stem, fontsize=6, color="#444444")
        plot.plot(eyes[:, x], eyes[:, y], "o", ms=4, color="#c23b22")
        plot.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=title, xticks=[], yticks=[])
        if y == 1:
            plot.invert_yaxis()
    figure.suptitle(f"{len(poses)} cameras (red, looking along the arrows) around {len(points)} points")
    figure.savefig(file, dpi=100)
