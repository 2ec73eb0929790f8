"""Ray marching: the kernel against the PyTorch form, whose parts tests/ops/test_render.py holds to their formulas."""

import pytest
import torch
from kernels.compare import DEVICE, TOLERANCE, assert_near
from visionkit_kernels import march

from visionkit.errors import VisionKitError
from visionkit.ops import ColourNetwork, dispatch, render_triplanes, render_vector_matrix

SIGMA = 2
NAMES = ("rgb", "depth", "opacity", "distortion")


def scene(dtype=torch.float64, batch=2, rays=70, size=5, colours=3, width=6, frequencies=2, sharp=1.0, seed=0):
    """Grids and a network as leaves, and rays that start in and outside the box and leave it: up to 1.5 and beyond."""
    generator = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    extra = 6 * frequencies + 3
    leaves = dict(
        planes=new(3, batch, SIGMA + colours, size, size) * sharp,
        vectors=new(3, batch, SIGMA + colours, size, 1),
        weight1=new(width, 3 * colours) / 2,
        bias1=new(width) / 2,
        weight2=new(width, width + extra) / 2,
        bias2=new(width) / 2,
        weight3=new(3, width),
        bias3=new(3),
    )
    leaves = {name: x.to(DEVICE, dtype).requires_grad_() for name, x in leaves.items()}
    origins, directions = new(batch, rays, 3), new(batch, rays, 3)
    near = torch.rand(batch, 1, generator=generator, dtype=torch.float64) / 4
    return leaves, (origins.to(DEVICE), torch.nn.functional.normalize(directions, dim=-1).to(DEVICE), near.to(DEVICE))


def in_form(form, leaves, view, kind="vector_matrix", **options):
    origins, directions, near = view
    network = ColourNetwork(*[leaves[name] for name in ColourNetwork._fields])
    dtype = torch.float64 if form == "torch" else torch.float32
    dtype = torch.float64 if leaves["planes"].dtype == torch.float64 else dtype
    box = torch.tensor([[-0.9, -0.8, -0.7], [0.8, 0.8, 0.8]], device=DEVICE, dtype=dtype)
    rays = origins.to(dtype), directions.to(dtype), near.to(dtype), torch.full_like(near, 2.2).to(dtype), box
    options = dict(dict(num_samples=7, sigma_dim=SIGMA), **options)
    with dispatch.use_kernels(form):
        if kind == "triplanes":
            density = torch.ones(1, 3 * SIGMA, device=DEVICE, dtype=dtype) / 2, leaves["bias1"][:1]
            return render_triplanes(leaves["planes"], density, network, *rays, **options)
        return render_vector_matrix(leaves["planes"], leaves["vectors"], network, *rays, **options)


def assert_same_march(leaves, view, tolerance=None, **options):
    dtype = leaves["planes"].dtype
    tolerance = tolerance or 3 * TOLERANCE[dtype]
    wide = {name: x.detach().double().requires_grad_() for name, x in leaves.items()}
    seen, expected = in_form("triton", leaves, view, **options), in_form("torch", wide, view, **options)
    for name in NAMES:
        assert_near(getattr(seen, name), getattr(expected, name), tolerance, name)
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: torch.randn(getattr(expected, name).shape, generator=generator, dtype=torch.float64).to(DEVICE)
        for name in NAMES
    }
    used = [name for name in leaves if name != "vectors" or options.get("kind") != "triplanes"]
    grads = [
        torch.autograd.grad(sum((getattr(out, name) * weights[name]).sum() for name in NAMES), [x[n] for n in used])
        for out, x in ((seen, leaves), (expected, wide))
    ]
    for name, actual, wanted in zip(used, *grads):
        assert actual.dtype == dtype and wanted.abs().max() > 0
        assert_near(actual, wanted, tolerance, f"gradient of {name}")


@pytest.mark.parametrize("kind", march.FIELDS)
@pytest.mark.parametrize("seed", [None, 7])
def test_march(kind, seed):
    """70 rays are two tiles, walked over by two programs in both scenes."""
    leaves, view = scene()
    seed = None if seed is None else torch.tensor(seed, device=DEVICE)
    assert_same_march(leaves, view, kind=kind, seed=seed, background=torch.tensor([0.2, 0.5, 1.0], device=DEVICE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_march_in_single_and_half_precision(dtype):
    leaves, view = scene(dtype, batch=1, rays=20)
    assert_same_march(leaves, view, num_samples=4)


def test_opaque_rays_stop_and_faint_samples_are_left_out():
    leaves, view = scene(batch=1, rays=9, sharp=30.0)
    assert_same_march(leaves, view)
    assert_same_march(leaves, view, min_weight=0.05)


def test_empty_space_is_background_and_has_no_gradient():
    leaves, view = scene(batch=1, rays=3)
    with torch.no_grad():
        leaves["planes"][:, :, :SIGMA] = -1
        leaves["vectors"][:, :, :SIGMA] = 1
    seen = in_form("triton", leaves, view, background=torch.ones(3, device=DEVICE))
    assert torch.equal(seen.rgb, torch.ones_like(seen.rgb)) and seen.opacity.abs().max() == 0
    assert torch.autograd.grad(seen.rgb.sum(), leaves["planes"])[0].abs().max() == 0


def test_transposed_grids():
    leaves, view = scene(batch=2, rays=5)
    turned = dict(leaves, planes=leaves["planes"].mT.contiguous().mT)
    torch.testing.assert_close(in_form("triton", turned, view).rgb, in_form("triton", leaves, view).rgb)


def test_registration_and_one_graph():
    leaves, view = scene(batch=1, rays=4)
    expected = in_form("triton", leaves, view)
    assert "march" in type(expected.depth.grad_fn).__name__
    compiled = torch.compile(in_form, fullgraph=True, backend="eager")("triton", leaves, view)
    torch.testing.assert_close(compiled.rgb, expected.rgb)


def test_refuses_what_it_cannot_do():
    leaves, view = scene(batch=1, rays=2, width=80)
    with pytest.raises(VisionKitError, match="64 wide"):
        in_form("triton", leaves, view)
    leaves, (origins, directions, near) = scene(batch=1, rays=2)
    with pytest.raises(VisionKitError, match="no gradients of rays"):
        in_form("triton", leaves, (origins.requires_grad_(), directions, near), ray_gradients=True)


def test_rays_that_could_have_a_gradient_get_none_unless_it_is_asked_for():
    leaves, view = scene(batch=1, rays=2)
    view = [x.requires_grad_() for x in view]
    for form in ("triton", "torch"):
        rgb = in_form(form, leaves, view, num_samples=3).rgb
        assert torch.autograd.grad(rgb.sum(), view, allow_unused=True) == (None,) * 3
