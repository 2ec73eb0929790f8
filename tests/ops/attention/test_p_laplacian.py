import pytest
import torch

from visionkit.errors import VisionKitError
from visionkit.ops.attention.p_laplacian import p_laplacian, strength


def graph(n=9, r=4):
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(2, n, n, dtype=torch.float64, generator=draw).softmax(-1)
    return a, torch.randn(2, n, r, dtype=torch.float64, generator=draw)


@pytest.mark.parametrize("p", [1.25, 3.0])
def test_against_loops(p):
    a, f = graph()
    mu = 0.2
    y = p_laplacian(a, f, mu, p)
    for b in range(2):
        for i in range(9):
            weights = [
                a[b, i, j] * ((a[b, i, j].sqrt() * (f[b, i] - f[b, j])).square().sum() + 1e-6).sqrt() ** (p - 2)
                for j in range(9)
            ]
            alpha = 1 / (sum(weights) + 2 * mu / p)
            expected = alpha * sum(w * f[b, j] for j, w in enumerate(weights)) + alpha * 2 * mu / p * f[b, i]
            torch.testing.assert_close(y[b, i], expected)


def test_p_of_two_is_averaging():
    a, f = graph()
    torch.testing.assert_close(p_laplacian(a, f, 0.3, p=2), (a @ f + 0.3 * f) / 1.3)


def test_equal_tokens_stay():
    a, f = graph()
    same = f[:, :1].expand_as(f)
    torch.testing.assert_close(p_laplacian(a, same, 0.3), same)


def test_gradients():
    a, f = graph(5, 3)
    theta = torch.tensor(0.3, dtype=torch.float64)
    inputs = (a, f, theta)
    for x in inputs:
        x.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, f, theta: p_laplacian(a, f, strength(theta)), inputs)


@pytest.mark.parametrize("p", [1, 0, -1])
def test_wrong_p_is_told(p):
    with pytest.raises(VisionKitError, match=f"^p={p}: expected a number above 1$"):
        p_laplacian(*graph(), 0.3, p)
