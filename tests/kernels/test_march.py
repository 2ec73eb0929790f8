"""Ray marching: the kernel against the PyTorch form, whose parts tests/ops/test_render.py holds to their formulas."""

import math

import pytest
import torch
import triton
import triton.language as tl
from kernels.compare import DEVICE
from kernels.marching import (
    KINDS,
    NAMES,
    SIGMA,
    assert_one_graph,
    assert_same_march,
    march_in_form,
    rays_as_leaves,
    scene,
)
from visionkit_kernels._gelu import gelu_with_slope

from visionkit.errors import VisionKitError


@pytest.mark.parametrize(("kind", "seed"), [("vector_matrix", 7), ("triplanes", None)])
def test_march(kind, seed):
    """70 rays are two tiles, walked over by two programs in both scenes."""
    leaves, view = scene()
    seed = None if seed is None else torch.tensor(seed, device=DEVICE)
    assert_same_march(leaves, view, kind=kind, seed=seed, background=torch.tensor([0.2, 0.5, 1.0], device=DEVICE))


@pytest.mark.parametrize("kind", KINDS)
def test_edges_of_all_rays_move_alike_if_noise_is_shared(kind):
    leaves, view = scene(rays=20)
    seed = torch.tensor(7, device=DEVICE)
    assert_same_march(leaves, view, kind=kind, seed=seed, jitter="shared")
    own, shared = (
        march_in_form("triton", leaves, view, seed=seed, jitter=jitter).depth for jitter in ("ray", "shared")
    )
    assert not torch.equal(own, shared)


@pytest.mark.parametrize(("kind", "seed"), [("vector_matrix", None), ("triplanes", 7)])
def test_gradients_of_rays(kind, seed):
    """And all else that [test_march] looks at, with the noise that it goes without."""
    leaves, view = scene(rays=40)
    seed = None if seed is None else torch.tensor(seed, device=DEVICE)
    assert_same_march(leaves, rays_as_leaves(view), kind=kind, seed=seed, ray_gradients=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_rays_in_single_and_half_precision(dtype):
    leaves, view = scene(dtype, batch=1, rays=20, fog=True)
    assert_same_march(leaves, rays_as_leaves(view), num_samples=4, ray_gradients=True)


def test_gradients_of_rays_that_are_opaque_or_see_little():
    leaves, view = scene(batch=1, rays=9, sharp=30.0)
    assert_same_march(leaves, rays_as_leaves(view), ray_gradients=True)
    assert_same_march(leaves, rays_as_leaves(view), min_weight=0.05, ray_gradients=True)


def test_gradient_of_one_end_of_rays_alone():
    leaves, view = scene(batch=1, rays=3)
    *_, far = rays_as_leaves(view)
    found = []
    for form in ("triton", "torch"):
        seen = march_in_form(form, leaves, (*view, far), num_samples=3, ray_gradients=True)
        found.append(torch.autograd.grad(seen.depth.sum(), far)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_small_grids(kind, size):
    assert_same_march(*scene(batch=1, rays=20, size=size, fog=True), kind=kind, num_samples=4)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_march_without_frequencies_of_directions():
    """On a device, a remainder of a division by zero is anything."""
    leaves, view = scene(batch=1, rays=20, frequencies=0)
    assert_same_march(leaves, view, num_samples=4)


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
    seen = march_in_form("triton", leaves, view, background=torch.ones(3, device=DEVICE))
    assert torch.equal(seen.rgb, torch.ones_like(seen.rgb)) and seen.opacity.abs().max() == 0
    assert torch.autograd.grad(seen.rgb.sum(), leaves["planes"])[0].abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_density_that_is_not_a_number_is_not_hidden(kind):
    """It was empty space, so that a diverged model went on."""
    leaves, view = scene(batch=1, rays=20)
    with torch.no_grad():
        leaves["planes"][1, 0, 0, 1:3, 1:3] = torch.nan
    seen, expected = (march_in_form(form, leaves, view, kind=kind) for form in ("triton", "torch"))
    assert 0 < expected.depth.isnan().sum() < 20
    for name in NAMES:
        torch.testing.assert_close(getattr(seen, name), getattr(expected, name), equal_nan=True, msg=name)


def test_transposed_grids():
    leaves, view = scene(batch=2, rays=5)
    turned = dict(leaves, planes=leaves["planes"].mT.contiguous().mT)
    torch.testing.assert_close(march_in_form("triton", turned, view).rgb, march_in_form("triton", leaves, view).rgb)


def test_registration_and_one_graph():
    leaves, view = scene(batch=1, rays=4)
    assert "march" in type(march_in_form("triton", leaves, view).depth.grad_fn).__name__
    assert_one_graph(leaves, view, "eager")


def test_refuses_what_it_cannot_do():
    leaves, view = scene(batch=1, rays=2, width=80)
    with pytest.raises(VisionKitError, match="64 wide"):
        march_in_form("triton", leaves, view)


def test_rays_that_could_have_a_gradient_get_none_unless_it_is_asked_for():
    leaves, view = scene(batch=1, rays=2)
    view = [x.requires_grad_() for x in view]
    for form in ("triton", "torch"):
        rgb = march_in_form(form, leaves, view, num_samples=3).rgb
        assert torch.autograd.grad(rgb.sum(), view, allow_unused=True) == (None,) * 3


@triton.jit
def gelu_kernel(x, value, slope, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    y, dy = gelu_with_slope(tl.load(x + i))
    tl.store(value + i, y)
    tl.store(slope + i, dy)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_gelu_is_near_that_of_erf_also_far_out():
    x = torch.linspace(-12, 12, 4096, device=DEVICE)
    x[:3] = torch.tensor([-1e30, 1e30, torch.inf])
    value, slope = torch.empty_like(x), torch.empty_like(x)
    gelu_kernel[(1,)](x, value, slope, len(x))
    wide = x.double().requires_grad_()
    expected = wide * (1 + torch.erf(wide / math.sqrt(2))) / 2
    (wanted,) = torch.autograd.grad(expected[3:].sum(), wide)
    assert torch.equal(value[:3], x.new_tensor([0, 1e30, torch.inf]))
    assert (value - expected)[3:].abs().max() < 1e-6
    assert (slope - wanted)[3:].abs().max() < 1e-6
