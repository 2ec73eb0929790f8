"""The render operations against their formulas, written out with loops or in one piece."""

import math

import pytest
import torch

from visionkit.errors import VisionKitError
from visionkit.ops import ColourNetwork, render_cp, render_triplanes, render_vector_matrix
from visionkit.ops import render as R

AABB = torch.tensor([[-0.8] * 3, [0.8] * 3], dtype=torch.float64)


def layer(*shape):
    """Weights or biases of a small network."""
    return torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).view(shape)


def grids(batch=2, channels=5, side=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    planes = torch.randn(3, batch, channels, side, side, generator=generator, dtype=dtype)
    return planes, torch.randn(3, batch, channels, side, 1, generator=generator, dtype=dtype)


def colour(features, directions):
    return (features[..., :3] + directions).sigmoid()


def rays(batch=2, count=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    origins = torch.tensor([0.0, 0.0, -1.3], dtype=dtype).expand(batch, count, 3).contiguous()
    directions = torch.randn(batch, count, 3, generator=generator, dtype=dtype) * 0.3 + origins.new_tensor([0, 0, 1])
    return origins, directions / directions.norm(dim=-1, keepdim=True)


FIELDS = {
    "vector_matrix": lambda planes, vectors: R.vector_matrix_field(planes, vectors, 2, colour),
    "dense": lambda planes, vectors: R.vector_matrix_field(planes, vectors, 2, colour, dense=True),
    "triplanes": lambda planes, vectors: R.triplane_field(planes, 2, lambda x: x.sum(-1, keepdim=True), colour),
    "CP": lambda planes, vectors: R.cp_field(vectors, 2, colour),
}


def naive_lookup(grid, x, y):
    """Bilinear with zeros outside; cell centres at (i + 0.5) / side * 2 - 1. Truncation would fail below 0."""
    side_y, side_x = grid.shape[-2:]
    u, v = ((x + 1) * side_x - 1) / 2, ((y + 1) * side_y - 1) / 2
    total = torch.zeros(grid.shape[0], dtype=grid.dtype)
    for i in (int(u.floor()), int(u.floor()) + 1):
        for j in (int(v.floor()), int(v.floor()) + 1):
            if 0 <= i < side_x and 0 <= j < side_y:
                total += grid[:, j, i] * (1 - (u - i).abs()) * (1 - (v - j).abs())
    return total


def test_lookups_match_the_formula_inside_and_beyond_the_border():
    planes, vectors = grids()
    points = torch.empty(2, 40, 3, dtype=torch.float64).uniform_(-1.5, 1.5, generator=torch.Generator().manual_seed(2))
    features = R.vector_matrix_features(planes, vectors, points)
    for b, p in ((0, 0), (0, 7), (1, 3), (1, 39), (1, 12)):
        x, y, z = points[b, p]
        pairs = [((x, y), z), ((z, x), y), ((y, z), x)]
        for i, ((first, second), third) in enumerate(pairs):
            plane = naive_lookup(planes[i, b], first, second)
            vector = naive_lookup(vectors[i, b], torch.zeros((), dtype=torch.float64), third)
            assert torch.allclose(features[b, p, i], plane * vector, atol=1e-12)


def test_dense_density_is_the_same_function_with_the_same_gradient():
    planes, vectors = (x.requires_grad_() for x in grids())
    points = torch.empty(2, 200, 3, dtype=torch.float64).uniform_(-1.3, 1.3, generator=torch.Generator().manual_seed(2))
    results = []
    for dense in (False, True):
        sigma = R.vector_matrix_field(planes, vectors, 3, colour, dense).density(points)
        results.append((sigma, *torch.autograd.grad(sigma.square().sum(), (planes, vectors))))
    assert results[0][0].max() > 0
    for plain, dense in zip(*results):
        assert torch.allclose(plain, dense, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_feature_table_is_the_same_function_with_the_same_gradient(dtype, tolerance):
    planes, vectors = (x.to(dtype).requires_grad_() for x in grids())
    points = torch.empty(2, 200, 3, dtype=dtype).uniform_(-1.5, 1.5, generator=torch.Generator().manual_seed(2))
    weight = torch.randn(planes.shape[2] * 3, dtype=dtype, generator=torch.Generator().manual_seed(3))
    results = []
    for look_up in (R.FeatureTable(planes, vectors), lambda x: R.vector_matrix_features(planes, vectors, x).flatten(2)):
        features = look_up(points)
        results.append((features, *torch.autograd.grad((features @ weight).sum(), (planes, vectors))))
    for table, plain in zip(*results):
        assert table.shape == plain.shape and torch.allclose(table, plain, atol=tolerance, rtol=tolerance)


def naive_render(field, origins, directions, edges, aabb):
    """The formula, ray by ray."""
    rgb = torch.zeros(origins.shape, dtype=edges.dtype)
    depth = torch.zeros(origins.shape[:2], dtype=edges.dtype)
    for b in range(origins.shape[0]):
        for r in range(origins.shape[1]):
            light = 1.0
            for i in range(edges.shape[-1] - 1):
                low, high = edges[b, r, i], edges[b, r, i + 1]
                point = origins[b, r] + directions[b, r] * (low + high) / 2
                point = ((point - aabb[0]) / (aabb[1] - aabb[0]) * 2 - 1)[None, None].expand(len(origins), 1, 3)
                way = directions[b, r][None, None].expand(len(origins), 1, 3)
                alpha = 1 - torch.exp(-field.density(point)[b, 0] * (high - low))
                rgb[b, r] += light * alpha * field.colour(point, way)[b, 0]
                depth[b, r] += light * alpha * (low + high) / 2
                light = light * (1 - alpha)
    return rgb, depth


@pytest.mark.parametrize("kind", FIELDS)
def test_rendering_matches_the_formula(kind):
    planes, vectors = grids()
    field = FIELDS[kind](planes, vectors)
    origins, directions = rays()
    edges = R.ray_edges(0.3, 2.4, 9, origins).double()
    seen = R.render_rays(field, origins, directions, edges, AABB, keep_weights=True)
    rgb, depth = naive_render(field, origins, directions, edges, AABB)
    assert seen.opacity.max() > 0.1
    assert torch.allclose(seen.rgb, rgb, atol=1e-5) and torch.allclose(seen.depth, depth, atol=1e-6)
    white = R.render_rays(field, origins, directions, edges, AABB, background=torch.ones(3))
    assert torch.allclose(white.rgb, rgb + (1 - seen.weights.sum(-1))[..., None], atol=1e-5)


@pytest.mark.parametrize("colours", [(2, 7, 3), (7, 3), (2, 1, 3), (1, 1, 3), (3,)])
def test_chunks_change_neither_values_nor_gradients(colours):
    planes, vectors = (x.requires_grad_() for x in grids())
    origins, directions = rays(count=7)
    edges = R.ray_edges(0.3, 2.4, 9, origins).double()
    background = torch.rand(colours, dtype=torch.float64)
    results = []
    for chunk in (7, 3):
        field = R.vector_matrix_field(planes, vectors, 2, colour)
        seen = R.render_rays_in_chunks(
            field, origins, directions, edges, AABB, chunk=chunk, background=background, keep_weights=True
        )
        loss = seen.rgb.square().sum() + seen.distortion.sum() + seen.depth.sum()
        results.append((*seen, *torch.autograd.grad(loss, (planes, vectors))))
    for whole, parts in zip(*results):
        assert torch.allclose(whole, parts, atol=1e-6)


def test_no_rays_at_all_see_nothing():
    """It was a TypeError."""
    field = R.vector_matrix_field(*grids(), 2, colour)
    origins, directions = rays(count=3)
    edges = R.ray_edges(0.3, 2.4, 4, origins).double()
    seen = R.render_rays_in_chunks(field, origins[:, :0], directions[:, :0], edges[:, :0], AABB, chunk=2)
    assert seen.rgb.shape == (2, 0, 3) and seen.depth.shape == seen.opacity.shape == seen.distortion.shape == (2, 0)


def rays_as_leaves():
    """Origins, directions, near and far."""
    ends = torch.tensor([[0.3], [0.4]], dtype=torch.float64), torch.tensor([[2.4], [2.3]], dtype=torch.float64)
    return [x.requires_grad_() for x in (*rays(count=3), *ends)]


def seen_along(kind, ray_gradients, chunk=2):
    """A rendering as a function of origins, directions, near and far."""
    field = FIELDS[kind](*grids())

    def run(origins, directions, near, far):
        edges = R.ray_edges(near, far, 6, origins, "ray", torch.tensor(3))
        options = dict(chunk=chunk, ray_gradients=ray_gradients, keep_weights=True)
        return R.render_rays_in_chunks(field, origins, directions, edges, AABB, **options)[:5]

    return run


@pytest.mark.parametrize(("kind", "chunk"), [*((kind, 3) for kind in FIELDS), ("dense", 2)])
def test_gradients_of_rays_are_those_of_finite_differences(kind, chunk):
    """Each of the four was partial, missing or an error."""
    run, leaves = seen_along(kind, True, chunk), rays_as_leaves()
    assert all(grad.abs().max() > 0.01 for grad in torch.autograd.grad(run(*leaves)[0].sum(), leaves))
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("kind", FIELDS)
def test_no_gradient_flows_to_rays_unless_it_is_asked_for(kind):
    seen = seen_along(kind, False)(*rays_as_leaves())
    assert not any(x.requires_grad for x in seen)


@pytest.mark.parametrize("kind", ["vector_matrix", "triplanes"])
def test_whole_renderings_have_gradients_of_rays_by_option(kind):
    planes, vectors = grids()
    network = ColourNetwork(layer(4, 9), layer(4), layer(4, 13), layer(4), layer(3, 4), layer(3))
    render, second = {
        "vector_matrix": (render_vector_matrix, vectors),
        "triplanes": (render_triplanes, (layer(1, 6) + 0.5, layer(1))),
    }[kind]
    options = dict(sigma_dim=2, num_samples=4, chunk=2, seed=torch.tensor(3))
    run = lambda *rays, **more: render(planes, second, network, *rays, AABB, **options, **more)[:4]
    assert torch.autograd.gradcheck(lambda *x: run(*x, ray_gradients=True), rays_as_leaves(), fast_mode=True)
    assert not any(x.requires_grad for x in run(*rays_as_leaves()))
    for without, asked in zip(run(*rays(), 0.3, 2.4), run(*rays(), 0.3, 2.4, ray_gradients=True)):
        assert torch.equal(without, asked)


@pytest.mark.parametrize("kind", ["vector_matrix", "triplanes", "CP"])
@pytest.mark.parametrize("jitter", ["ray", "shared"])
def test_whole_renderings_give_their_weights_and_edges(kind, jitter):
    planes, vectors = grids()
    network = ColourNetwork(layer(4, 3 if kind == "CP" else 9), layer(4), layer(4, 13), layer(4), layer(3, 4), layer(3))
    density = layer(1, 6) + 0.5, layer(1)
    net = lambda x: torch.nn.functional.linear(x, *density)
    grid, field = {
        "vector_matrix": ((planes, vectors), R.vector_matrix_field(planes, vectors, 2, network.rgb)),
        "triplanes": ((planes, density), R.triplane_field(planes, 2, net, network.rgb)),
        "CP": ((vectors,), R.cp_field(vectors, 2, network.rgb)),
    }[kind]
    render = {"vector_matrix": render_vector_matrix, "triplanes": render_triplanes, "CP": render_cp}[kind]
    (origins, directions), seed = rays(), torch.tensor(3)
    edges = R.ray_edges(0.3, 2.4, 4, origins, jitter, seed)
    expected = R.render_rays(field, origins, directions, edges, AABB, keep_weights=True)
    options = dict(sigma_dim=2, num_samples=4, chunk=2, seed=seed, jitter=jitter)
    seen = render(*grid, network, origins, directions, 0.3, 2.4, AABB, **options, keep_weights=True)
    assert seen.weights.sum() > 0 and torch.equal(seen.edges, edges)
    torch.testing.assert_close(tuple(seen), tuple(expected))
    assert render(*grid, network, origins, directions, 0.3, 2.4, AABB, **options).weights is None


@pytest.mark.parametrize("kind", ["vector_matrix", "triplanes"])
def test_autocast_reaches_colours_alone(kind):
    planes, vectors = (x.float() for x in grids())
    layer = lambda *shape: torch.linspace(-1, 1, math.prod(shape)).view(shape)
    network = ColourNetwork(layer(4, 9), layer(4), layer(4, 13), layer(4), layer(3, 4), layer(3))
    render, second = {
        "vector_matrix": (render_vector_matrix, vectors),
        "triplanes": (render_triplanes, (layer(1, 6) + 0.5, layer(1))),
    }[kind]
    along = [x.float() for x in rays()]
    run = lambda: render(planes, second, network, *along, 0.3, 2.4, layer(2, 3), sigma_dim=2, num_samples=4)
    exact = run()
    with torch.autocast("cpu", torch.bfloat16):
        seen = run()
    assert torch.equal(seen.depth, exact.depth) and torch.equal(seen.opacity, exact.opacity)
    assert 0 < (seen.rgb - exact.rgb).abs().max() < 0.02


def test_nothing_visible_is_background():
    planes, vectors = (torch.zeros_like(x) for x in grids())
    origins, directions = rays()
    edges = R.ray_edges(0.3, 2.4, 4, origins).double()
    seen = R.render_rays(R.vector_matrix_field(planes, vectors, 2, colour), origins, directions, edges, AABB)
    assert seen.rgb.abs().max() == 0 and seen.opacity.abs().max() == 0


def test_distortion_is_the_double_sum():
    weights = torch.rand(3, 6, dtype=torch.float64).softmax(-1).requires_grad_()
    edges = torch.rand(3, 7, dtype=torch.float64).sort(-1).values
    middle, width = (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=-1)
    spread = (middle[:, :, None] - middle[:, None]).abs()
    expected = (weights[:, :, None] * weights[:, None] * spread).sum((1, 2)) + (width * weights**2).sum(1) / 3
    actual = R.distortion_loss(weights, edges)
    assert torch.allclose(actual, expected, atol=1e-12)
    (one,) = torch.autograd.grad(actual.sum(), weights, retain_graph=True)
    (two,) = torch.autograd.grad(expected.sum(), weights)
    assert torch.allclose(one, two, atol=1e-12)


def test_jitter_per_ray_or_shared():
    origins = torch.zeros(2, 5, 3)
    even = R.ray_edges(1.0, 3.0, 8, origins)
    assert torch.allclose(even[0, 0], torch.linspace(1, 3, 9))
    own = R.ray_edges(1.0, 3.0, 8, origins, "ray", torch.tensor(0))
    assert len(own.flatten(0, 1).unique(dim=0)) == 10
    assert (own >= even).all() and (own - even <= 0.25).all() and (own.diff(dim=-1) >= 0).all()
    assert torch.equal(own[..., -1], even[..., -1])
    shared = R.ray_edges(1.0, 3.0, 8, origins, "shared")
    assert len(shared.flatten(0, 1).unique(dim=0)) == 1
    with pytest.raises(VisionKitError, match="jitter"):
        R.ray_edges(1.0, 3.0, 8, origins, "batch")


@pytest.mark.parametrize("jitter", [None, "ray", "shared"])
def test_edges_of_some_rays_are_those_among_all(jitter):
    origins, seed = torch.zeros(2, 7, 3), torch.tensor(5)
    near = torch.rand(2, 7, generator=torch.Generator().manual_seed(0))
    whole = R.ray_edges(near, 3.0, 8, origins, jitter, seed)
    for rays in (slice(0, 3), slice(3, 6), slice(6, 9)):
        assert torch.equal(R.ray_edges(near, 3.0, 8, origins, jitter, seed, rays), whole[:, rays])


def test_near_and_far_may_differ_between_scenes():
    edges = R.ray_edges(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]]), 4, torch.zeros(2, 5, 3))
    assert edges[0, 0, 0] == 1 and edges[1, 4, -1] == 4
