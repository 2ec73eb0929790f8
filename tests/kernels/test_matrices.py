import pytest
import torch
import visionkit_kernels
from kernels.compare import inputs

from visionkit.ops import dispatch
from visionkit.ops.gaussian import SOLVE_RIDGE, add_ridge, landmark_kernel, newton_inverse, solve


def matrices(rows, spread=1.0):
    """Gaussian kernels of landmarks; the less they spread the closer to singular."""
    (x,) = inputs((2, 3, rows, 4), dtype=torch.float64, spread=spread)
    return landmark_kernel(x.detach())


def test_newton_in_one_launch():
    a = matrices(7)
    with dispatch.use_kernels("triton"):
        inverse = newton_inverse(a)
    with dispatch.use_kernels("torch"):
        torch.testing.assert_close(inverse, newton_inverse(a), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("rows", [1, 7, 16, 49, 64])
def test_inverse_in_one_launch(rows):
    a = add_ridge(matrices(rows), 0.01)
    torch.testing.assert_close(visionkit_kernels.inverse(a), torch.linalg.inv(a), rtol=1e-9, atol=1e-9)
    single = visionkit_kernels.inverse(a.float())
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, torch.linalg.inv(a.float().double()), rtol=1e-9, atol=1e-9)


def test_solutions_of_nearly_singular_matrices():
    """Of right sides of some 20; the matrices are nearly singular: 1e-7 of them at most is left over."""
    a = add_ridge(matrices(20, spread=0.05), SOLVE_RIDGE)
    assert torch.linalg.cond(a).min() > 1e6
    b = a @ torch.ones(20, 2, dtype=a.dtype)
    for invert in (visionkit_kernels.inverse, None):
        assert (a @ solve(a, b, invert) - b).abs().max() < 1e-7


def test_solutions_have_the_gradient_of_solutions():
    a, b = add_ridge(matrices(7), 0.01).requires_grad_(), torch.ones(7, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.linspace(-1, 1, 14, dtype=torch.float64).view(7, 2)
    grads = torch.autograd.grad((solve(a, b, visionkit_kernels.inverse) * weight).sum(), (a, b))
    expected = torch.autograd.grad((torch.linalg.solve(a, b) * weight).sum(), (a, b))
    for actual, wanted in zip(grads, expected):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)
