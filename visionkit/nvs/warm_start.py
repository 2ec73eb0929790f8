"""A fit that starts at what NViST predicts from one of the capture's photographs."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.errors import VisionKitError
from visionkit.nvs.cameras import compose, relative_to
from visionkit.nvs.captures.scene import Scene
from visionkit.nvs.fit import DENSITY_SCALE, INNER, SceneField, Settings
from visionkit.nvs.inferencer import InputView, NVSInferencer, crop

if TYPE_CHECKING:
    from visionkit.nvs.model import Grids

# Softplus at zero is not zero: what NViST leaves empty is moved this far below.
EMPTY = -0.2
CELLS = 96


class WarmStart:
    """NViST's prediction from one photograph of a capture, to be handed to [visionkit.nvs.fit.fit].

    Args:
        nvs: a model with the vector-matrix representation.
        scene: the capture.
        row: number of the photograph.
    """

    def __init__(self, nvs: NVSInferencer, scene: Scene, row: int) -> None:
        if nvs.model.renderer.representation != "vector_matrix":
            raise VisionKitError(f"--start: expected a vector_matrix model, not {nvs.model.renderer.representation}")
        self.scene, distance = in_frame_of(scene, row)
        image, focal = crop(scene.image(row), scene.camera(row).focal[0], nvs.model.img_size)
        self.grids = nvs.represent(InputView(image, focal, distance))
        self.renderer, self.box = nvs.model.renderer, float(nvs.model.aabb[1, 0])

    def settings(self, settings: Settings) -> Settings:
        """Sizes that hold the prediction; the grids do not grow."""
        channels = self.grids.planes.shape[2]
        density = self.renderer.sigma_dim
        width = self.renderer.rgb_mlp[-1].in_features
        return settings._replace(
            channels=(density, channels - density), width=width, density=CELLS, colour=CELLS, growth=()
        )

    def __call__(self, model: SceneField) -> None:
        """Sets a field to the prediction."""
        set_field(model, self.grids, self.renderer)


def in_frame_of(scene: Scene, row: int) -> tuple[Scene, float]:
    """A capture in NViST's frame, the given photograph being the input, and its camera's distance."""
    scene = scene.normalised().scene
    distance = float(np.linalg.norm(scene.centres[row]))
    motion = relative_to(np.eye(3, 4)[None], scene.c2w[row], distance)[0]
    points = scene.points @ motion[:, :3].T + motion[:, 3]
    return dataclasses.replace(scene, c2w=compose(motion[None], scene.c2w), points=points), distance


def set_field(model: SceneField, grids: "Grids", renderer: torch.nn.Module) -> None:
    """Sets a field, whose box is NViST's, to predicted grids and their colour network.

    The warp works on each axis for itself, so that a plane times a vector stays one.
    """
    density = renderer.sigma_dim
    for grid, part in ((model.density_grid, slice(density)), (model.colour_grid, slice(density, None))):
        planes, vectors = resample(grids.planes[:, :, part], grids.vectors[:, :, part], grid.planes.shape[-1])
        scale = DENSITY_SCALE if grid is model.density_grid else 1.0
        grid.planes.data, grid.vectors.data = planes.cpu(), vectors.cpu() / scale
    model.offset, model.directional = EMPTY, True
    background = renderer.background
    net = type(renderer)(
        "vector_matrix", *model.settings.channels, model.settings.width, renderer.viewdir_pe, "learned"
    )
    net.rgb_matrix.load_state_dict(renderer.rgb_matrix.state_dict())
    net.rgb_mlp.load_state_dict(renderer.rgb_mlp.state_dict())
    net.background_logit.data = (torch.zeros(3) if background is None else background.detach().cpu()).logit(0.02)
    model.net = net.cpu()


def resample(planes: Tensor, vectors: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Grids on a box -> grids of the warped world, see [visionkit.nvs.fit.Bounds.warp]; empty beyond the box."""
    at = (torch.arange(cells, device=planes.device) + 0.5) / cells * 2 - 1
    inside = at / INNER
    at = torch.where(inside.abs() <= 1, inside, at.sign() * (1 - INNER) / (1 - at.abs()))
    row, column = torch.meshgrid(at, at, indexing="ij")
    look = dict(mode="bilinear", padding_mode="zeros", align_corners=False)
    planes = [F.grid_sample(plane, torch.stack([column, row], -1)[None], **look) for plane in planes]
    line = torch.stack([torch.zeros_like(at), at], -1)[None, :, None]
    vectors = [F.grid_sample(vector, line, **look) for vector in vectors]
    return torch.stack(planes), torch.stack(vectors)
