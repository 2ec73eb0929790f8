"""Scenes for training and evaluation, as samples of an input view and target views.

A sample is a dictionary of what [visionkit.nvs.model.NViST] reads: ``image`` (V, 3, H, W) in [0, 1], the input view
first; ``c2w`` (V, 3, 4) in the input view's frame; ``focal`` (V, 2); ``camera_params`` (2,); ``near_far`` (2,); and
``path``, the scene's name.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import Dataset

from visionkit.errors import VisionKitError
from visionkit.nvs.cameras import Camera, relative_to, rolled
from visionkit.nvs.captures.photos import middle_of
from visionkit.nvs.captures.scene import CENTRES, Scene


class SceneViews(Dataset):
    """Samples of scenes.

    Args:
        scenes: the scenes, of two views or more; their points are not used.
        img_size: (height, width) of the views. A photograph of another shape is turned where one is portrait and the
            other landscape, and cropped in its middle.
        near_far: distances between which rays are sampled, one pair for all scenes.
        views: views of a training sample, the input view included; None gives evaluation samples, whose input is the
            middle view and whose targets are all others.
        include_input: the input view is a target too (the released evaluation).
        centre: the point of the scene to which the input view's distance is told to the model. ``viewed``: where the
            cameras look; a photograph tells how far that is but for its unit, so the distance tells the unit. ``cube``:
            the unit cube's centre (released), whose distance says little of it.
    """

    def __init__(
        self,
        scenes: list[Scene],
        img_size: tuple[int, int],
        near_far: tuple[float, float],
        views: int | None = 5,
        include_input: bool = False,
        centre: str = "viewed",
    ) -> None:
        if views is not None and views < 2:
            raise VisionKitError(f"views={views}: expected 2 or more, the input view and its targets")
        if centre not in CENTRES:
            raise VisionKitError(f"centre={centre!r}: expected one of {', '.join(CENTRES)}")
        self.scenes, self.img_size, self.near_far = scenes, tuple(img_size), near_far
        self.views, self.include_input, self.centre = views, include_input, centre
        self._told: set[Path] = set()

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        scene = self.scenes[index]
        found = self._readable(scene, self._choose(len(scene)))
        if self.views is not None:  # others take the places of those that cannot be read
            found = (found or self._readable(scene, range(len(scene)))) * self.views
        if len(found) < 2:
            raise VisionKitError(f"{scene.name}: {len(found)} of its photos can be read; restore them or remove it")
        rows, images, cameras = zip(*found[: self.views])
        distance = float(scene.distances(self.centre)[rows[0]])
        return dict(sample(np.stack(images), cameras, distance, self.near_far), path=scene.name)

    def _readable(self, scene: Scene, rows: Iterable[int]) -> list[tuple[int, np.ndarray, Camera]]:
        """Rows, pictures and cameras, without photographs that cannot be decoded, of which the log tells once."""
        found = []
        for row in rows:
            try:
                found.append((row, *fitted_view(scene, row, self.img_size)))
            except VisionKitError as error:
                if scene.paths[row] not in self._told:
                    self._told.add(scene.paths[row])
                    print_log(f"{error}; its view is left out", "current", logging.WARNING)
        return found

    def _choose(self, count: int) -> list[int]:
        """Rows of the input view and its targets."""
        if self.views is not None:  # targets are drawn with replacement and may be the input view
            return torch.randint(count, (self.views,)).tolist()
        middle = count // 2
        return [middle, *(row for row in range(count) if self.include_input or row != middle)]

    @property
    def distance(self) -> float:
        """Median distance of a camera from its scene's centre."""
        return float(np.median(np.concatenate([scene.distances(self.centre) for scene in self.scenes])))


def sample(
    images: np.ndarray, cameras: Iterable[Camera], distance: float, near_far: tuple[float, float]
) -> dict[str, Tensor]:
    """What the model reads of one scene.

    Args:
        images: (V, H, W, 3) uint8, the input view first.
        cameras: cameras of the V views, in the scene's unit cube.
        distance: distance of the input view's camera from the scene's centre.
        near_far: distances between which rays are sampled, see [SceneViews].
    """
    cameras = list(cameras)
    c2w = relative_to(np.stack([camera.c2w for camera in cameras]), cameras[0].c2w, distance)
    return dict(
        image=torch.from_numpy(images).movedim(-1, 1).float() / 255,
        c2w=torch.from_numpy(c2w).float(),
        focal=torch.tensor([camera.focal for camera in cameras], dtype=torch.float32),
        camera_params=torch.tensor([distance, cameras[0].focal[1] / cameras[0].size[0]], dtype=torch.float32),
        near_far=torch.tensor(near_far, dtype=torch.float32),
    )


def fitted_view(scene: Scene, row: int, img_size: tuple[int, int]) -> tuple[np.ndarray, Camera]:
    """A photograph and its camera with a given number of pixels: turned, cropped in its middle, resized.

    Returns:
        image (H, W, 3) uint8 and its camera.
    """
    camera = scene.camera(row)
    if camera.size[1] * img_size[0] == camera.size[0] * img_size[1]:
        return scene.image(row, img_size), camera.resized(img_size)
    image = scene.image(row)
    camera = camera.resized(image.shape[:2])
    if (camera.size[1] - camera.size[0]) * (img_size[1] - img_size[0]) < 0:  # one is portrait, the other landscape
        camera, image = rolled(camera), np.rot90(image)
    image, scale = middle_of(image, img_size)
    return image, Camera(camera.c2w, (camera.focal[0] / scale, camera.focal[1] / scale), img_size)
