"""New views of a photograph by a trained NViST, from Python."""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from visionkit.devices import choose_device
from visionkit.errors import VisionKitError
from visionkit.nvs.cameras import Camera, focal_from_field_of_view, relative_to
from visionkit.nvs.captures import Scene, read_photo
from visionkit.nvs.captures.photos import middle_of
from visionkit.nvs.model import Grids, NViST
from visionkit.nvs.trajectories import curve, poses
from visionkit.nvs.weights import USUAL_SCALE, load_shipped, load_small, load_trained


class View(NamedTuple):
    """A rendered view: rgb (H, W, 3) uint8; depth (H, W) float32 in the scene's units, far where nothing is."""

    rgb: np.ndarray
    depth: np.ndarray


class InputView(NamedTuple):
    """What the model reads: image (H, W, 3) uint8 of its size, focal length in pixels, distance of the camera."""

    image: np.ndarray
    focal: float
    distance: float


class NVSInferencer:
    """New views of photographs.

    >>> nvs = NVSInferencer()
    >>> for view in nvs.render("photo.jpg", trajectory="swing", frames=24):
    ...     show(view.rgb, view.depth)

    Args:
        weights: a checkpoint of `visionkit train`, a .safetensors file like the shipped one, or a model; by default the
            small model that is shipped.
        device: ``"auto"`` takes a GPU if there is one.

    Raises:
        VisionKitError: the checkpoint is missing, damaged or of another model, or the device is not there.
    """

    def __init__(self, weights: "str | os.PathLike | NViST | None" = None, device: str = "auto") -> None:
        model, scale = _load(weights)
        self.device = choose_device(device)
        self.model = model.to(self.device).eval()
        self.distance, self.centre = float(scale["distance"]), scale["centre"]
        self.near_far = tuple(float(each) for each in scale["near_far"])

    def read(
        self, photo: "str | os.PathLike | Image.Image", fov: float | None = None, distance: float | None = None
    ) -> tuple[InputView, str]:
        """A photograph as the model takes it, cropped in its middle, and a note on where its lens is from.

        Args:
            photo: a file or a PIL image.
            fov: field of view across the long side in degrees, instead of what EXIF says.
            distance: distance of the camera from what it looks at, in units of the scene; by default the usual one of
                the model's training scenes. It mostly scales the result.
        """
        ratio = None if fov is None else focal_from_field_of_view(fov, 1)
        if distance is not None and not 0.05 <= distance <= 5:
            raise VisionKitError(f"--distance {distance:g}: expected 0.05 to 5, in units of the scene's size")
        found = read_photo(photo, ratio)
        image, focal = crop(found.image, found.focal, self.model.img_size)
        return InputView(image, focal, distance or self.distance), found.note

    @torch.no_grad()
    def represent(self, view: InputView) -> Grids:
        """The radiance field of an input view: the slow part, once per photograph."""
        image = torch.from_numpy(view.image.copy()).to(self.device).movedim(-1, 0)[None].float() / 255
        camera = torch.tensor([[view.distance, view.focal / view.image.shape[0]]], device=self.device)
        return self.model.represent(image, camera.float())

    def reach(self, distance: float) -> tuple[float, float]:
        """Near and far of a scene from whose centre the input view's camera stands so far.

        The distance from what is looked at tells the scene's unit; that from the unit cube's middle does not.
        """
        unit = distance / self.distance if self.centre == "viewed" else 1.0
        return self.near_far[0] * unit, self.near_far[1] * unit

    @torch.inference_mode()
    def look(self, grids: Grids, camera: Camera, distance: float | None = None) -> View:
        """Renders one camera.

        Args:
            grids: the scene's grids, from [represent].
            camera: the camera to render, in the input view's frame, whose origin is the scene's centre.
            distance: distance of the input view's camera from that origin, as [represent] was told; by default the
                usual one.
        """
        distance = distance or self.distance
        near, far = self.reach(distance)
        further = float(np.linalg.norm(camera.centre)) / distance  # a camera that steps back sees as far as before
        near, far = near * min(1.0, further), far + distance * max(0.0, further - 1)
        origins, directions = (rays[None] for rays in camera.rays(self.device))
        seen = self.model.render(
            grids, origins, directions, torch.tensor([[near, far]], device=self.device), min_weight=1e-4
        )
        rgb = (seen.rgb[0].clamp(0, 1) * 255).round().byte().view(*camera.size, 3)
        depth = seen.depth[0] + (1 - seen.opacity[0]) * far
        return View(rgb.cpu().numpy(), depth.view(camera.size).cpu().numpy())

    def render(
        self,
        photo: "str | os.PathLike | Image.Image | InputView",
        trajectory: str = "swing",
        frames: int = 48,
        long_side: int | None = None,
        fov: float | None = None,
        distance: float | None = None,
        degrees: float | None = None,
    ) -> Iterator[View]:
        """Views along a path, one after the other.

        Args:
            photo: a file, a PIL image or what [read] gives.
            trajectory, frames, degrees: see [visionkit.nvs.trajectories.curve].
            long_side: pixels of the long side of the views; by default the model's own.
            fov, distance: see [read].
        """
        path = curve(trajectory, frames, degrees)
        view = photo if isinstance(photo, InputView) else self.read(photo, fov, distance)[0]
        lens = Camera(np.eye(3, 4), (view.focal, view.focal), view.image.shape[:2])
        lens = lens.resized(_scaled(lens.size, long_side))
        grids = self.represent(view)
        for c2w in poses(path, view.distance):
            yield self.look(grids, lens.moved(c2w), view.distance)

    def view_in(self, scene: Scene, row: int, distance: float) -> InputView:
        """A photograph of a capture as the model takes it, with its camera's distance from the scene's centre."""
        return InputView(*crop(*square_pixels(scene, row), self.model.img_size), distance)

    def views_of(
        self, scene: Scene, row: int | None = None, long_side: int | None = None
    ) -> Iterator[tuple[str, np.ndarray, View]]:
        """The other photographs of a capture, seen from one of them.

        Args:
            scene: the capture.
            row: number of the input view; by default the middle one.
            long_side: see [render].

        Yields:
            name, the true photograph (H, W, 3) uint8, the rendered view.
        """
        row = len(scene) // 2 if row is None else row
        scene = scene.normalised().scene
        size = _scaled(self.model.img_size, long_side)
        distance = float(scene.distances(self.centre)[row])
        grids = self.represent(self.view_in(scene, row, distance))
        for other, c2w in enumerate(relative_to(scene.c2w, scene.c2w[row], distance)):
            truth, focal = crop(*square_pixels(scene, other), size)
            yield scene.names[other], truth, self.look(grids, Camera(c2w, (focal, focal), size), distance)


def square_pixels(scene: Scene, row: int) -> tuple[np.ndarray, float]:
    """A photograph (H, W, 3) uint8, stretched where its pixels are no squares, and its focal length in pixels."""
    camera = scene.camera(row)
    (focal_x, focal_y), (height, width) = camera.focal, camera.size
    if abs(focal_x / focal_y - 1) < 5e-3:  # as calibrations err
        return scene.image(row), focal_x
    return scene.image(row, (height, max(1, round(width * focal_y / focal_x)))), focal_y


def crop(image: np.ndarray, focal: float, size: Sequence[int]) -> tuple[np.ndarray, float]:
    """The middle of an image with the shape of ``size``, resized to it, and the focal length in its pixels.

    Args:
        image: (H, W, 3) uint8.
        focal: focal length in pixels of ``image``.
        size: (height, width).
    """
    part, scale = middle_of(image, size)
    return part, focal / scale


def _scaled(size: tuple[int, int], long_side: int | None) -> tuple[int, int]:
    if long_side is None:
        return size
    if not 16 <= long_side <= 4096:
        raise VisionKitError(f"long_side={long_side} (--size): expected 16 to 4096 pixels")
    return tuple(max(1, round(side * long_side / max(size))) for side in size)


def _load(weights: "str | os.PathLike | NViST | None") -> tuple[NViST, dict]:
    """A model and what is known of its training scenes: ``distance``, ``centre``, ``near_far``."""
    if isinstance(weights, torch.nn.Module):
        return weights, USUAL_SCALE
    if weights is None:
        return load_shipped()
    if str(weights).endswith(".safetensors"):
        return load_small(weights)
    model, _, scale = load_trained(weights)
    return model, scale
