"""A capture: photographs of one place with their cameras and, where known, the points that they share."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from visionkit.errors import VisionKitError
from visionkit.nvs.cameras import NARROWEST, WIDEST, Camera, field_of_view
from visionkit.nvs.captures.photos import read_turned_photo

NEAR_QUANTILE, FAR_QUANTILE = 0.001, 0.999
NEAR_MARGIN, FAR_MARGIN = 0.9, 1.1
BOX_QUANTILE = 0.95
STANDING = 1e-6  # of the scene's size: cameras that walked no further stand in one place
MIN_TRACK, FEWEST_POINTS = 10, 100
CENTRES = "viewed", "cube"
ROWS = "K", "sizes", "c2w", "distortion"  # arrays with a row for each photograph


@dataclasses.dataclass(frozen=True)
class Scene:
    """Posed photographs, in the convention of [visionkit.nvs.cameras]. All arrays are float64 unless said otherwise.

    Attributes:
        name: for messages.
        names: file names of the N photographs, sorted.
        paths: their files.
        K: (N, 3, 3) intrinsics in pixels of the image file, turned upright as its EXIF asks; pixel centres at +0.5.
        sizes: (N, 2) int, (height, width) that ``K`` speaks of.
        c2w: (N, 3, 4).
        distortion: (N, 8) of the lenses, OpenCV's k1, k2, p1, p2, k3, ..., k6; zeros for a pinhole.
        points: (P, 3) in world coordinates; P may be 0.
        visible: for each photograph the points it was matched to, as indices (int); none where nobody tells.
        skipped: (name, reason) of photographs that could not be used.
    """

    name: str
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    K: np.ndarray
    sizes: np.ndarray
    c2w: np.ndarray
    distortion: np.ndarray
    points: np.ndarray
    visible: tuple[np.ndarray, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, rows: "list[int] | np.ndarray") -> "Scene":
        """The scene with some of its photographs. Points stay."""
        rows = [int(row) for row in rows]
        return dataclasses.replace(
            self,
            names=tuple(self.names[row] for row in rows),
            paths=tuple(self.paths[row] for row in rows),
            visible=tuple(self.visible[row] for row in rows),
            **{key: getattr(self, key)[rows] for key in ROWS},
        )

    @property
    def centres(self) -> np.ndarray:
        """(N, 3) where the cameras stand."""
        return self.c2w[:, :, 3]

    def target_size(self, row: int, long_side: int) -> tuple[int, int]:
        """(height, width) of a photograph scaled to ``long_side``."""
        height, width = self.sizes[row]
        scale = long_side / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def camera(self, row: int, size: tuple[int, int] | None = None) -> Camera:
        """The ideal camera of a photograph, as [image] shows it.

        Args:
            row: number of the photograph.
            size: (height, width); by default that of the file.
        """
        height, width = (int(side) for side in self.sizes[row])
        K = _ideal_intrinsics(self.K[row], self.distortion[row], (height, width))
        camera = Camera(self.c2w[row], (float(K[0, 0]), float(K[1, 1])), (height, width))
        return camera if size is None else camera.resized(size)

    def image(self, row: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """A photograph without lens distortion and with its principal point in the middle: (H, W, 3) uint8.

        Args:
            row: number of the photograph.
            size: (height, width); by default that of the file.

        Raises:
            VisionKitError: the file cannot be read, or has another shape than its camera.
        """
        height, width = (int(side) for side in self.sizes[row])
        picture = read_turned_photo(self.paths[row])
        if not same_shape(picture.size[::-1], (height, width)):
            raise VisionKitError(
                f"{self.paths[row]}: is {picture.width}x{picture.height}, its camera is {width}x{height};"
                " expected the same shape, so restore the image or its camera"
            )
        size = size or (height, width)
        # The lens is undone at twice the size or more, where resampling once more blurs least.
        if min(picture.height // size[0], picture.width // size[1]) >= 2:
            picture = picture.resize((2 * size[1], 2 * size[0]), Image.Resampling.BOX)
        K = self.K[row].copy()
        K[:2] *= np.array([[picture.width / width], [picture.height / height]])
        picture = _undistorted(picture, K, self.distortion[row])
        if picture.size != size[::-1]:
            picture = picture.resize(size[::-1], Image.Resampling.LANCZOS)
        return np.asarray(picture)

    def moved(self, centre: np.ndarray, scale: float) -> "Scene":
        """The scene with ``centre`` (3,) at the origin and lengths multiplied by ``scale``."""
        c2w = self.c2w.copy()
        c2w[:, :, 3] = (c2w[:, :, 3] - centre) * scale
        return dataclasses.replace(self, c2w=c2w, points=(self.points - centre) * scale)

    def distances(self, centre: str) -> np.ndarray:
        """(N,): of the cameras from the scene's centre, one of CENTRES: where they look, or the unit cube's."""
        return viewed_distances(self.c2w) if centre == "viewed" else np.linalg.norm(self.centres, axis=1)

    def trusted_points(self) -> np.ndarray:
        """Indices (K,) of the points that many photographs agree on and that are no outliers of position.

        Those seen in at least 10 photographs, as the paper takes them; where a small capture leaves fewer than 100,
        those seen in at least 3. Of these, the ones within the central 95% along each axis.
        """
        seen = np.bincount(np.concatenate([*self.visible, np.zeros(0, int)]), minlength=len(self.points))
        keep = np.flatnonzero(seen >= MIN_TRACK)
        if len(keep) < FEWEST_POINTS:
            keep = np.flatnonzero(seen >= 3)
        if len(keep) < FEWEST_POINTS:
            keep = np.arange(len(self.points))
        if len(keep) == 0:
            return keep
        tail = (1 - BOX_QUANTILE) / 2
        low, high = np.quantile(self.points[keep], [tail, 1 - tail], axis=0)
        inside = (self.points[keep] >= low) & (self.points[keep] <= high)
        return keep[inside.all(axis=1)]

    def content(self) -> np.ndarray:
        """The trusted points and, after them, all camera centres, (M, 3).

        Raises:
            VisionKitError: all cameras stand in one place, from which nothing tells how far things are.
        """
        everything = np.concatenate([self.points[self.trusted_points()], self.centres])
        side, walked = (float(np.ptp(each, axis=0).max()) for each in (everything, self.centres))
        if not side > 0 or (len(self) > 1 and walked < STANDING * side):
            raise VisionKitError(f"{self.name}: all cameras stand in one place; walk around the subject")
        return everything

    def normalised(self) -> "NormalisedScene":
        """The scene in a unit cube around the origin, with the distances between which it lies.

        The box of the trusted points and all camera centres gives the cube, the depths of what each camera sees the
        distances (NViST's own preparation).
        """
        everything = self.content()
        low, high = everything.min(axis=0), everything.max(axis=0)
        has_points = len(everything) > len(self)
        near, far = self._near_far(everything) if has_points else self._near_far_of_cameras()
        centre, scale = (low + high) / 2, 1 / float((high - low).max())
        return NormalisedScene(self.moved(centre, scale), near * scale, far * scale, centre, scale)

    def in_view(self, row: int, points: np.ndarray) -> np.ndarray:
        """Those of some points (M, 3) that lie in a photograph, in its camera's frame; nothing hides another."""
        local = (points - self.c2w[row, :, 3]) @ self.c2w[row, :, :3]
        local = local[local[:, 2] > 1e-6]
        pixel = local @ self.K[row].T
        pixel = pixel[:, :2] / pixel[:, 2:]
        return local[((pixel >= 0) & (pixel < self.sizes[row][::-1])).all(axis=1)]

    def _near_far(self, everything: np.ndarray) -> tuple[float, float]:
        """Distances that hold what the cameras see of ``everything`` (M, 3)."""
        nears, fars = [], []
        for row in range(len(self)):
            depth = self.in_view(row, everything)[:, 2]
            if len(depth):
                nears.append(np.quantile(depth, NEAR_QUANTILE))
                fars.append(np.quantile(depth, FAR_QUANTILE))
        if not nears:
            return self._near_far_of_cameras()
        near, far = np.quantile(nears, NEAR_QUANTILE), np.quantile(fars, FAR_QUANTILE)
        return NEAR_MARGIN * float(near), FAR_MARGIN * float(far)

    def _near_far_of_cameras(self) -> tuple[float, float]:
        """A guess where no points are known: the cameras look at one thing, and something lies behind it."""
        distance = viewed_distances(self.c2w)
        return 0.2 * float(distance.min()), 3 * float(distance.max())


@dataclasses.dataclass(frozen=True)
class NormalisedScene:
    """A scene in the unit cube.

    Attributes:
        scene: moved and scaled.
        near, far: distances between which the cameras see it.
        centre, scale: what was done: (x - centre) * scale.
    """

    scene: Scene
    near: float
    far: float
    centre: np.ndarray
    scale: float


def viewed_centre(c2w: np.ndarray) -> np.ndarray:
    """The point nearest to all optical axes (N, 3, 4) -> (3,), in least squares; for one camera, 1 ahead of it.

    Parallel axes meet nowhere; the point is then held near the cameras by a weak spring.
    """
    forward, centre = c2w[:, :, 2], c2w[:, :, 3]
    across = np.eye(3) - forward[:, :, None] * forward[:, None]
    spread = np.linalg.norm(centre - centre.mean(axis=0), axis=1).max() or 1.0
    ahead = (centre + forward * spread).mean(axis=0)
    spring = 1e-3 * len(c2w)
    left = across.sum(axis=0) + spring * np.eye(3)
    right = (across @ centre[:, :, None]).sum(axis=0)[:, 0] + spring * ahead
    return np.linalg.solve(left, right)


def viewed_distances(c2w: np.ndarray) -> np.ndarray:
    """(N,): of cameras (N, 3, 4) from the point that they look at."""
    return np.linalg.norm(c2w[:, :, 3] - viewed_centre(c2w), axis=1)


def turned(
    c2w: np.ndarray, K: np.ndarray, size: tuple[int, int], distortion: np.ndarray, turns: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, int], np.ndarray]:
    """A camera whose picture is turned clockwise by quarter turns.

    Args:
        c2w, K, size, distortion: the camera's pose (3, 4), intrinsics (3, 3), (height, width) and distortion, see
            [Scene].
        turns: number of quarter turns, clockwise.
    """
    for _ in range(turns):
        height, width = size
        x, y, z, centre = c2w.T
        c2w = np.stack([-y, x, z, centre], axis=1)  # what was down is to the left
        K = np.array([[K[1, 1], 0, height - K[1, 2]], [0, K[0, 0], K[0, 2]], [0, 0, 1]])
        distortion = distortion.copy()
        distortion[2:4] = distortion[3], -distortion[2]
        size = width, height
    return c2w, K, size, distortion


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two (height, width) are one image at two resolutions, up to rounding."""
    (height, width), (high, wide) = size, other
    return abs(width * high - wide * height) <= max(0.02 * width * high, width, high)


def check_lens(K: np.ndarray, size: tuple[int, int]) -> None:
    """Raises VisionKitError where intrinsics (3, 3) of an image of (height, width) are those of no lens of ours."""
    degrees = max(field_of_view(K[0, 0], size[1]), field_of_view(K[1, 1], size[0]))
    if not NARROWEST <= degrees <= WIDEST:
        expected = f"expected {NARROWEST} to {WIDEST} across the image"
        raise VisionKitError(f"has a lens of {degrees:.3g} degrees by its focal length; {expected}")


def _ideal_intrinsics(K: np.ndarray, distortion: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Intrinsics of the largest image without distortion and off-centre axis that the photograph fills."""
    height, width = size
    centred = np.array([width / 2, height / 2])
    if not distortion.any() and np.abs(K[:2, 2] - centred).max() < 0.25:
        ideal = K.copy()
    else:
        ideal, _ = cv2.getOptimalNewCameraMatrix(_to_cv(K), distortion, (width, height), 0, centerPrincipalPoint=True)
    ideal[:2, 2], ideal[0, 1] = centred, 0
    return ideal


def _undistorted(picture: Image.Image, K: np.ndarray, distortion: np.ndarray) -> Image.Image:
    """A photograph as a camera of [_ideal_intrinsics] sees it."""
    ideal = _ideal_intrinsics(K, distortion, (picture.height, picture.width))
    if not distortion.any() and np.allclose(K, ideal, atol=0.25):
        return picture
    maps = cv2.initUndistortRectifyMap(_to_cv(K), distortion, None, _to_cv(ideal), picture.size, cv2.CV_32FC1)
    return Image.fromarray(cv2.remap(np.asarray(picture), *maps, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE))


def _to_cv(K: np.ndarray) -> np.ndarray:
    """OpenCV counts pixel centres from 0, not 0.5."""
    shifted = K.copy()
    shifted[:2, 2] -= 0.5
    return shifted
