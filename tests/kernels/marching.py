"""Scenes for the ray march, and its two forms compared: small in the interpreter, of real size on a device."""

from unittest import mock

import torch
from kernels.compare import DEVICE, TOLERANCE, assert_near
from visionkit_kernels import march

from visionkit.ops import ColourNetwork, dispatch, render_triplanes, render_vector_matrix

KINDS = ("vector_matrix", "triplanes")
SIGMA = 2
NAMES = ("rgb", "depth", "opacity", "distortion")
RAYS = ("origins", "directions", "near", "far")


def scene(
    dtype=torch.float64, batch=2, rays=70, size=5, colours=3, width=6, frequencies=2, sharp=1.0, fog=False, seed=0
):
    """Grids and a network as leaves, and rays that start in and outside the box and leave it: up to 1.5 and beyond.

    ``fog`` has density above zero all over: among many samples rounding moves one over zero, and its gradient away.
    """
    generator = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    layer = lambda *shape: new(*shape) / shape[-1] ** 0.5
    leaves = dict(
        planes=new(3, batch, SIGMA + colours, size, size) * sharp,
        vectors=new(3, batch, SIGMA + colours, size, 1),
        weight1=layer(width, 3 * colours),
        bias1=new(width) / 2,
        weight2=layer(width, width + 6 * frequencies + 3),
        bias2=new(width) / 2,
        weight3=layer(3, width),
        bias3=new(3),
    )
    if fog:
        for each in (leaves["planes"][:, :, :SIGMA], leaves["vectors"][:, :, :SIGMA], leaves["bias1"]):
            each.abs_()
    leaves = {name: x.to(DEVICE, dtype).requires_grad_() for name, x in leaves.items()}
    origins, directions = new(batch, rays, 3), new(batch, rays, 3)
    near = torch.rand(batch, 1, generator=generator, dtype=torch.float64) / 4
    return leaves, (origins.to(DEVICE), torch.nn.functional.normalize(directions, dim=-1).to(DEVICE), near.to(DEVICE))


def march_in_form(form, leaves, view, kind="vector_matrix", **options):
    origins, directions, near, *far = view
    far = far[0] if far else torch.full_like(near, 2.2)
    network = ColourNetwork(*[leaves[name] for name in ColourNetwork._fields])
    dtype = torch.float64 if form == "torch" else torch.float32
    dtype = torch.float64 if leaves["planes"].dtype == torch.float64 else dtype
    box = torch.tensor([[-0.9, -0.8, -0.7], [0.8, 0.8, 0.8]], device=DEVICE, dtype=dtype)
    rays = origins.to(dtype), directions.to(dtype), near.to(dtype), far.to(dtype), box
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
    seen, expected = march_in_form("triton", leaves, view, **options), march_in_form("torch", wide, view, **options)
    for name in NAMES:
        assert_near(getattr(seen, name), getattr(expected, name), tolerance, name)
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: torch.randn(getattr(expected, name).shape, generator=generator, dtype=torch.float64).to(DEVICE)
        for name in NAMES
    }
    if options.get("ray_gradients"):
        rays = dict(zip(RAYS, view))
        leaves, wide = dict(leaves, **rays), dict(wide, **rays)
    used = [name for name in leaves if name != "vectors" or options.get("kind") != "triplanes"]
    grads = [
        torch.autograd.grad(sum((getattr(out, name) * weights[name]).sum() for name in NAMES), [x[n] for n in used])
        for out, x in ((seen, leaves), (expected, wide))
    ]
    for name, actual, wanted in zip(used, *grads):
        assert actual.dtype == leaves[name].dtype and wanted.abs().max() > 0
        compare = assert_mostly_near if name in RAYS and dtype != torch.float64 else assert_near
        compare(actual, wanted, tolerance, f"gradient of {name}")


def assert_mostly_near(actual, expected, tolerance, what):
    """As [assert_near], but for one in a hundred: rounding moves a sample into the next cell, where slopes differ."""
    error = (actual.double() - expected).abs() / expected.abs().max()
    share = (error > tolerance).double().mean()
    assert share <= 0.01, f"{what}: {share:.1%} are off by more than {tolerance:.1e} of the largest"


def assert_one_graph(leaves, view, backend):
    """``torch.compile`` sees one graph, with the same gradients."""
    compiled = torch.compile(march_in_form, fullgraph=True, backend=backend)
    seen = [form("triton", leaves, view).rgb for form in (compiled, march_in_form)]
    torch.testing.assert_close(*seen)
    grads = [torch.autograd.grad(rgb.square().sum(), leaves["planes"])[0] for rgb in seen]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)  # on a device their sums have no order


def rays_as_leaves(view):
    """Origins, directions, near of each scene and far of each ray."""
    origins, directions, near = view
    far = torch.linspace(1.8, 2.4, origins.shape[1], dtype=near.dtype, device=DEVICE).expand(origins.shape[:2])
    return [x.clone().requires_grad_() for x in (origins, directions, near, far)]


def march_arguments(kind, ray_gradients=False):
    """What the operator is called with."""
    leaves, view = scene(torch.float32, batch=1, rays=3)
    view = rays_as_leaves(view) if ray_gradients else view
    with mock.patch.object(march, "march", wraps=march.march) as operator:
        march_in_form("triton", leaves, view, kind=kind, num_samples=2, ray_gradients=ray_gradients)
    return [
        x.detach().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x
        for x in operator.call_args.args
    ]
