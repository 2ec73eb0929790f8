"""The photograph's own frustum against explicit formulas."""

import math

import pytest
import torch
from nvs.test_model import TINY, scenes

from visionkit.nvs.cameras import pixel_rays
from visionkit.nvs.frustum import FEATURES, MARGIN, REACH, Frustum, FrustumHead, depth_error
from visionkit.nvs.model import NViST
from visionkit.ops.render import Field

SIZE, DISTANCE, FOCAL, BOX, DEPTHS = (20, 10), 0.5, 18.0, 0.8, 16
END = REACH * DISTANCE


def frustum(density, dtype=torch.float64):
    """Of one photograph with the densities (D,) of a stack of planes."""
    torch.manual_seed(0)
    density = torch.as_tensor(density, dtype=dtype)
    light = torch.exp(-(density.cumsum(0) - density / 2) * END / DEPTHS)
    volume = torch.stack([density, light])[None, :, :, None, None].expand(1, 2, DEPTHS, *SIZE)
    pixels = torch.rand(1, 6 + FEATURES, *SIZE, dtype=dtype)
    return Frustum(volume, pixels, torch.tensor([[DISTANCE, FOCAL / SIZE[0]]], dtype=dtype), BOX)


def own_rays():
    c2w = torch.eye(3, 4)[None, None].double()
    c2w[..., 2, 3] = -DISTANCE
    rays = pixel_rays(c2w, torch.full((1, 1, 2), FOCAL).double(), SIZE)
    return [each.flatten(1, 3) for each in rays]


def test_points_on_a_pixels_ray_are_placed_at_its_centre_and_depth():
    origins, directions = own_rays()
    place = frustum(torch.zeros(DEPTHS)).place((origins + 0.7 * directions) / BOX)[0]
    row, column = torch.meshgrid(*(torch.arange(side) + 0.5 for side in SIZE), indexing="ij")
    assert torch.allclose(place[:, 0], (column / SIZE[1] * 2 - 1).flatten().double())
    assert torch.allclose(place[:, 1], (row / SIZE[0] * 2 - 1).flatten().double())
    assert torch.allclose(place[:, 2], 0.7 * directions[0, :, 2] / END * 2 - 1)


def test_density_is_the_frustums_where_the_photograph_looks_and_the_fields_behind_it():
    density = torch.zeros(DEPTHS)
    density[5] = 300.0
    seen = frustum(density)
    depth = (torch.arange(DEPTHS, dtype=torch.float64) + 0.5) / DEPTHS * END
    points = torch.stack([torch.zeros(DEPTHS), torch.zeros(DEPTHS), (depth - DISTANCE) / BOX], dim=-1)[None].double()
    field = Field(lambda x: 7 * torch.ones_like(x[..., 0]), None)
    actual = FrustumHead(8, (4, 2), DEPTHS).complete(field, seen).density(points)[0]
    half = 300 * END / 2 / DEPTHS  # the optical depth of half the wall
    light = [1.0] * 5 + [float(torch.tensor(-half).exp())] + [float(torch.tensor(-2 * half).exp())] * (DEPTHS - 6)
    assert torch.allclose(actual, density.double() + (1 - torch.tensor(light).double()) * 7)


@pytest.mark.parametrize(("beyond", "believed"), [(0.0, 1.0), (MARGIN / 2, 0.5), (2 * MARGIN, 0.0)])
def test_the_frustum_fades_out_beyond_the_images_edge(beyond, believed):
    seen = frustum(torch.full((DEPTHS,), 2.0))
    density, light, trust = seen.look_up(torch.tensor([[[0.3, -1 - beyond, -1.0]]]).double())
    first = END / DEPTHS  # of optical depth, over half a cell
    assert float(density) == pytest.approx(2 * believed)
    assert float(light) == pytest.approx(believed * float(torch.tensor(-first).exp()), rel=1e-5)
    assert float(trust) == pytest.approx(believed)


def test_colours_are_the_pixels_the_fields_or_hidden_ones_as_the_mixture_says():
    seen = frustum(torch.zeros(DEPTHS))
    origins, directions = own_rays()
    field = Field(None, lambda x, d: torch.full_like(x, 0.25))
    head = FrustumHead(8, (4, 2), DEPTHS).double()
    points = (origins + 0.4 * directions) / BOX
    pixel = seen.pixels.flatten(2).mT
    torch.nn.init.zeros_(head.mix[-1].weight)
    for choice, expected in enumerate((pixel[..., :3], torch.full_like(points, 0.25), pixel[..., 3:6])):
        head.mix[-1].bias.data = 60.0 * (torch.arange(3) == choice).double()
        assert torch.allclose(head.complete(field, seen).colour(points, directions), expected)
    head.mix[-1].bias.data = torch.tensor([0.5, 0.25, 0.25]).double().log()
    expected = 0.5 * pixel[..., :3] + 0.25 * 0.25 + 0.25 * pixel[..., 3:6]
    assert torch.allclose(head.complete(field, seen).colour(points, directions), expected)


def test_a_head_fills_the_frustum_with_what_it_predicts():
    torch.manual_seed(0)
    head = FrustumHead(8, (4, 2), DEPTHS)
    image = torch.rand(2, 3, *SIZE)
    seen = head(image, torch.randn(2, 8, 8), torch.tensor([[0.5, 0.9]] * 2), BOX)
    assert seen.volume.shape == (2, 2, DEPTHS, *SIZE) and seen.pixels.shape == (2, 6 + FEATURES, *SIZE)
    density, light = seen.volume.unbind(1)
    assert density.min() > 0 and torch.equal(seen.pixels[:, :3], image)
    half = density * END / 2 / DEPTHS
    assert torch.allclose(light[:, 3], torch.exp(-2 * half[:, :3].sum(1) - half[:, 3]), atol=1e-6)


def test_a_scene_twice_as_large_has_the_same_frustum_twice_as_deep():
    torch.manual_seed(0)
    head = FrustumHead(8, (4, 2), DEPTHS)
    image, tokens = torch.rand(1, 3, *SIZE), torch.randn(1, 8, 8)
    small, large = (head(image, tokens, torch.tensor([[distance, 0.9]]), BOX) for distance in (0.5, 1.0))
    assert torch.allclose(large.depth(), 2 * small.depth(), atol=1e-6)
    points = 0.2 + torch.rand(1, 9, 3) * 0.4
    nearer, farther = (points * scale - torch.tensor([0, 0, away / BOX]) for scale, away in ((1, 0.5), (2, 1.0)))
    assert torch.allclose(large.place(farther), small.place(nearer), atol=1e-5)


def test_depth_is_the_mean_of_where_light_ends():
    density = torch.zeros(DEPTHS)
    density[5] = 1e4
    assert torch.allclose(frustum(density).depth(), torch.tensor(5 * END / DEPTHS).double())


def test_the_depth_error_is_the_cross_entropy_of_lit_and_unlit_cells():
    seen = frustum(torch.rand(DEPTHS, generator=torch.Generator().manual_seed(1)) * 5)
    step, depth = END / DEPTHS, 0.63
    expected = []
    for cell in range(DEPTHS):
        light = float(seen.volume[0, 1, cell, 0, 0])
        lit = min(max((depth - (cell + 0.5) * step) / step + 0.5, 0), 1)
        expected.append(-lit * math.log(light) - (1 - lit) * math.log(1 - light))
    actual = depth_error(seen.volume[:, 0], torch.full((1, *SIZE), depth).double(), seen.reach)
    assert float(actual) == pytest.approx(sum(expected) / DEPTHS, rel=1e-6)


def test_known_depths_make_a_loss_that_right_depths_lower():
    torch.manual_seed(0)
    model = NViST(**TINY, frustum_depths=16, jitter=None)
    batch = dict(scenes(), depth=torch.full((2, 3, *SIZE), 1.2))
    optimiser = torch.optim.Adam(model.parameters(), 0.003)
    losses = []
    for _ in range(30):
        torch.manual_seed(1)
        losses.append(model(scenes=batch, mode="loss")["loss_depth"])
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]
    assert "loss_depth" not in model(scenes=scenes(), mode="loss")


@pytest.mark.parametrize("representation", ["vector_matrix", "triplanes", "CP"])
def test_a_model_with_a_frustum_trains_every_part_and_draws(representation):
    torch.manual_seed(0)
    model = NViST(**TINY, representation=representation, frustum_depths=6)
    losses = model(scenes=scenes(), mode="loss")
    sum(value for key, value in losses.items() if "loss" in key).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without <= {"encoder.norm.weight", "encoder.norm.bias"}
    views = model.eval()(**scenes(), mode="predict")
    assert views.shape == (2, 3, 3, *SIZE) and 0 <= views.min() and views.max() <= 1
