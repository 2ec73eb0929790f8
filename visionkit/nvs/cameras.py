"""The one camera convention of the toolkit, and what is computed with it.

OpenCV: x right, y down, z forward, in camera and in world. ``c2w`` (3, 4) takes camera to world coordinates. The pixel
in column i and row j covers [i, i + 1] x [j, j + 1], so its centre is at (i + 0.5, j + 0.5). The principal point is the
middle of the image; readers bring other images into this form.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from visionkit.errors import VisionKitError

NARROWEST, WIDEST = 5, 150  # degrees across an image's long side that a lens of ours has


@dataclasses.dataclass(frozen=True)
class Camera:
    """An ideal pinhole camera with its principal point in the middle.

    Attributes:
        c2w: (3, 4) float64.
        focal: (fx, fy) in pixels.
        size: (height, width) in pixels.
    """

    c2w: np.ndarray
    focal: tuple[float, float]
    size: tuple[int, int]

    @property
    def centre(self) -> np.ndarray:
        """(3,) where the camera stands."""
        return self.c2w[:, 3]

    def resized(self, size: tuple[int, int]) -> "Camera":
        """The same view with another number of pixels."""
        scale = (size[1] / self.size[1], size[0] / self.size[0])
        return dataclasses.replace(self, focal=(self.focal[0] * scale[0], self.focal[1] * scale[1]), size=tuple(size))

    def moved(self, c2w: np.ndarray) -> "Camera":
        """The same lens at another pose, (3, 4) or (4, 4) c2w."""
        return dataclasses.replace(self, c2w=np.asarray(c2w, dtype=np.float64)[:3])

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points (M, 3) are seen, in pixels from the left and from the top.

        Returns:
            (M, 2), and (M,) booleans: whether a point lies before the camera and within the image.
        """
        local = (points - self.centre) @ self.c2w[:, :3]
        sides = np.array(self.size[::-1])
        with np.errstate(divide="ignore", invalid="ignore"):  # of a point beside the camera
            pixels = local[:, :2] / local[:, 2:] * self.focal + sides / 2
        return pixels, (local[:, 2] > 0) & ((pixels >= 0) & (pixels < sides)).all(axis=1)

    def rays(self, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
        """Origins and unit directions of all pixels, row by row: (H * W, 3) float32 each, made on that device."""
        c2w = torch.from_numpy(self.c2w)[None, None].float().to(device)
        focal = torch.tensor([[self.focal]], dtype=torch.float32, device=device)
        origins, directions = pixel_rays(c2w, focal, self.size)
        return origins.reshape(-1, 3), directions.reshape(-1, 3)


def pixel_rays(c2w: Tensor, focal: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rays through all pixel centres.

    Args:
        c2w: (B, V, 3, 4).
        focal: (B, V, 2), fx and fy in pixels.
        size: (height, width).

    Returns:
        origins, directions: (B, V, H, W, 3); directions have length 1, so that distances along them are Euclidean.
    """
    height, width = size
    row, column = torch.meshgrid(
        torch.arange(height, device=c2w.device) + 0.5 - height / 2,
        torch.arange(width, device=c2w.device) + 0.5 - width / 2,
        indexing="ij",
    )
    focal = focal[:, :, None, None].to(c2w.dtype)
    x, y = column / focal[..., 0], row / focal[..., 1]
    directions = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    directions = directions @ c2w[:, :, None, :, :3].transpose(-1, -2)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    return c2w[:, :, None, None, :, 3].expand_as(directions), directions


def look_at(eye: np.ndarray, target: np.ndarray, up: np.ndarray = (0.0, -1.0, 0.0)) -> np.ndarray:
    """Pose of a camera at ``eye`` that looks at ``target``; ``up`` points to the image's upper edge.

    Returns:
        c2w (3, 4).
    """
    eye, target = np.asarray(eye, dtype=np.float64), np.asarray(target, dtype=np.float64)
    forward = _unit(target - eye)
    right = _unit(np.cross(forward, np.asarray(up, dtype=np.float64)))
    return np.stack([right, np.cross(forward, right), forward, eye], axis=1)


def compose(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Applies ``second``, then ``first``: rigid motions (3, 4) or (N, 3, 4) -> (..., 3, 4)."""
    rotation = first[..., :3] @ second[..., :3]
    return np.concatenate([rotation, first[..., :3] @ second[..., 3:] + first[..., 3:]], axis=-1)


def inverse(pose: np.ndarray) -> np.ndarray:
    """Inverse of a rigid motion (..., 3, 4)."""
    rotation = np.swapaxes(pose[..., :3], -1, -2)
    return np.concatenate([rotation, -rotation @ pose[..., 3:]], axis=-1)


def relative_to(poses: np.ndarray, reference: np.ndarray, distance: float) -> np.ndarray:
    """Poses in NViST's frame, where the reference camera stands at (0, 0, -distance) and looks along +z.

    Args:
        poses: (N, 3, 4) c2w.
        reference: (3, 4) c2w of the input view.
        distance: distance of the reference camera from the scene's centre.
    """
    shift = np.eye(3, 4)
    shift[2, 3] = -distance
    return compose(compose(shift, inverse(reference)), np.asarray(poses))


def rolled(camera: Camera) -> Camera:
    """A camera turned by 90 degrees about its axis.

    Its image is to be turned counter-clockwise with it (``np.rot90``).
    """
    height, width = camera.size
    # New x (right) is old y (down); new y (down) is old -x.
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    c2w = np.concatenate([camera.c2w[:, :3] @ turn, camera.c2w[:, 3:]], axis=1)
    return Camera(c2w, (camera.focal[1], camera.focal[0]), (width, height))


def field_of_view(focal: float, pixels: int) -> float:
    """Angle in degrees that ``pixels`` span at a focal length in pixels."""
    return float(2 * np.degrees(np.arctan2(pixels, 2 * focal)))


def focal_from_field_of_view(degrees: float, pixels: int) -> float:
    """Inverse of [field_of_view]. Raises VisionKitError for an angle that no lens of ours has."""
    if not NARROWEST <= degrees <= WIDEST:
        raise VisionKitError(
            f"--fov {degrees:g}: expected degrees between {NARROWEST} and {WIDEST}, across the image's long side"
        )
    return float(pixels / (2 * np.tan(np.radians(degrees) / 2)))


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
