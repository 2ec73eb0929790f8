"""A fit that starts at what NViST predicts from one of the capture's photographs."""

import dataclasses

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.nvs.cameras import compose, relative_to
from visionkit.nvs.captures.scene import Scene
from visionkit.nvs.fit import Settings
from visionkit.nvs.inferencer import NVSInferencer
from visionkit.nvs.scene_field import SceneField

STEPS, POINTS, RATE = 200, 6000, 0.03
CELLS = 96
THICKNESS = 0.02  # of the slab through which densities are compared, in the scene's units: beyond opaque none matters


class WarmStart:
    """NViST's prediction from one photograph of a capture, to be handed to [visionkit.nvs.fit.fit].

    Args:
        nvs: a model.
        scene: the capture.
        row: number of the photograph.
    """

    def __init__(self, nvs: NVSInferencer, scene: Scene, row: int) -> None:
        self.scene, self.distance = in_frame_of(scene, row, nvs.centre)
        self.grids = nvs.represent(nvs.view_in(scene, row, self.distance))
        self.model, self.box, self.device = nvs.model, nvs.model.box, nvs.device

    def settings(self, settings: Settings) -> Settings:
        """Sizes that hold the prediction; the grids do not grow."""
        return settings._replace(density=CELLS, colour=CELLS, growth=())

    def __call__(self, model: SceneField) -> None:
        """Brings a field to the prediction, by descent at random points of NViST's box."""
        background = self.model.renderer.background
        background = torch.zeros(3) if background is None else background.detach()
        model.net.background_logit.data = background.to(model.net.background_logit).logit(0.02)
        parts = model.density_grid, model.colour_grid, model.net.rgb_matrix, model.net.rgb_mlp
        optimiser = torch.optim.Adam([each for part in parts for each in part.parameters()], RATE)
        for step in range(STEPS):
            optimiser.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
            points = (torch.rand(1, POINTS, 3) * 2 - 1).to(model.bounds.centre.device)
            loss = self._error(model, points)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    def _error(self, model: SceneField, points: Tensor) -> Tensor:
        """Squared errors of opacity and, where something is, of colour as the photograph's camera sees it."""
        with torch.no_grad():
            opacity, colour = self.predicted(points)
        field, there = model.field(), model.bounds.warp(points * self.box)
        own = field.colour(there, torch.zeros_like(points))
        off = opacity * (own - colour).square().mean(dim=-1)
        return (opaqueness(field.density(there)) - opacity).square().mean() + off.mean()

    @torch.no_grad()
    def predicted(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """NViST's opacity (1, P) and colour (1, P, 3) at points (1, P, 3) of its box."""
        field, here = self.model.field(self.grids), points.to(self.device)
        eye = here.new_tensor([0, 0, -self.distance])
        colour = field.colour(here, F.normalize(here * self.box - eye, dim=-1))
        return opaqueness(field.density(here)).to(points.device), colour.to(points.device)


def opaqueness(density: Tensor) -> Tensor:
    """Share of light that a thin slab absorbs, of any shape."""
    return 1 - torch.exp(-THICKNESS * density)


def in_frame_of(scene: Scene, row: int, centre: str) -> tuple[Scene, float]:
    """A capture in NViST's frame, the given photograph being the input, and its camera's distance from the centre."""
    scene = scene.normalised().scene
    distance = float(scene.distances(centre)[row])
    motion = relative_to(np.eye(3, 4)[None], scene.c2w[row], distance)[0]
    points = scene.points @ motion[:, :3].T + motion[:, 3]
    return dataclasses.replace(scene, c2w=compose(motion[None], scene.c2w), points=points), distance
