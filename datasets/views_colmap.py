"""COLMAP's binary files for scenes whose geometry is known: what structure from motion would ideally find.

The format is COLMAP's own (https://colmap.github.io/format.html): cameras.bin, images.bin and points3D.bin, all
little-endian. One SIMPLE_RADIAL camera (without distortion) takes all pictures, as in MVImgNet.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

SIMPLE_RADIAL = 2
# Depths that agree up to this share belong to the same point.
SAME_DEPTH = 0.01
MIN_VIEWS = 3


@dataclass(frozen=True)
class Points:
    """Points of a scene and the pictures that see them.

    Attributes:
        xyz: (N, 3) float64, world.
        rgb: (N, 3) uint8.
        seen: (V, N) bool.
        pixels: (V, N, 2) float64, where each picture sees each point; pixel centres at +0.5.
    """

    xyz: np.ndarray
    rgb: np.ndarray
    seen: np.ndarray
    pixels: np.ndarray


def sample_points(
    rng: np.random.Generator, images: np.ndarray, depths: np.ndarray, c2w: np.ndarray, focal: float, per_view: int
) -> Points:
    """Lifts random pixels of every view by their depth and looks for them in all other views.

    Args:
        rng: draws the pixels.
        images: (V, H, W, 3) uint8.
        depths: (V, H, W), along the optical axis, at pixel centres.
        c2w: (V, 3, 4).
        focal: focal length in pixels.
        per_view: pixels drawn in a view.
    """
    views, height, width = depths.shape
    view = np.repeat(np.arange(views), per_view)
    row, column = rng.integers(height, size=len(view)), rng.integers(width, size=len(view))
    z = depths[view, row, column].astype(np.float64)
    local = np.stack([(column + 0.5 - width / 2) / focal * z, (row + 0.5 - height / 2) / focal * z, z], axis=1)
    xyz = np.einsum("nij,nj->ni", c2w[view, :, :3], local) + c2w[view, :, 3]
    inside = np.einsum("vji,vnj->vni", c2w[:, :, :3], xyz[None] - c2w[:, None, :, 3])
    pixels = focal * inside[..., :2] / inside[..., 2:] + np.array([width / 2, height / 2])
    seen = (inside[..., 2] > 0) & (pixels > 0).all(-1) & (pixels < [width, height]).all(-1)
    x, y = np.where(seen[..., None], pixels, 0).astype(int).transpose(2, 0, 1)
    there = depths[np.arange(views)[:, None], y, x]
    seen &= np.abs(there - inside[..., 2]) < SAME_DEPTH * there
    seen[view, np.arange(len(view))] = True
    good = seen.sum(axis=0) >= MIN_VIEWS
    return Points(xyz[good], images[view, row, column][good], seen[:, good], pixels[:, good])


def write_model(
    folder: Path, names: list[str], c2w: np.ndarray, focal: float, size: tuple[int, int], points: Points
) -> None:
    """Writes the three files.

    Args:
        folder: ``sparse/0``, made if absent.
        names: file names of the V pictures.
        c2w: (V, 3, 4).
        focal: focal length in pixels.
        size: (height, width).
        points: see [Points].
    """
    folder.mkdir(parents=True, exist_ok=True)
    height, width = size
    camera = struct.pack("<QiiQQdddd", 1, 1, SIMPLE_RADIAL, width, height, focal, width / 2, height / 2, 0.0)
    (folder / "cameras.bin").write_bytes(camera)
    (folder / "images.bin").write_bytes(_images(names, c2w, points))
    (folder / "points3D.bin").write_bytes(_points(points))


def _images(names: list[str], c2w: np.ndarray, points: Points) -> bytes:
    rotation = c2w[:, :, :3].transpose(0, 2, 1)
    translation = -np.einsum("vij,vj->vi", rotation, c2w[:, :, 3])
    quaternion = Rotation.from_matrix(rotation).as_quat()[:, [3, 0, 1, 2]]
    parts = [struct.pack("<Q", len(names))]
    for view, name in enumerate(names):
        ids = points.seen[view].nonzero()[0]
        keypoints = np.zeros(len(ids), dtype=[("x", "<f8"), ("y", "<f8"), ("id", "<i8")])
        keypoints["x"], keypoints["y"] = points.pixels[view, ids].T
        keypoints["id"] = ids + 1
        pose = struct.pack("<i7di", view + 1, *quaternion[view], *translation[view], 1)
        parts += [pose, name.encode() + b"\0", struct.pack("<Q", len(ids)), keypoints.tobytes()]
    return b"".join(parts)


def _points(points: Points) -> bytes:
    # A point's number within each picture is its rank among the points which that picture sees.
    rank = points.seen.cumsum(axis=1) - 1
    parts = [struct.pack("<Q", len(points.xyz))]
    for number, (xyz, rgb) in enumerate(zip(points.xyz, points.rgb)):
        views = points.seen[:, number].nonzero()[0]
        track = np.stack([views + 1, rank[views, number]], axis=1).astype("<i4")
        parts += [struct.pack("<Q3d3BdQ", number + 1, *xyz, *rgb, 0.0, len(views)), track.tobytes()]
    return b"".join(parts)
