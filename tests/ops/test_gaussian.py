import subprocess
import sys

import pytest
import torch
from torch.autograd import gradcheck

from visionkit.errors import VisionKitError
from visionkit.ops import gaussian
from visionkit.ops.gaussian import (
    gaussian_attention,
    gaussian_kernel,
    landmark_kernel,
    newton_inverse,
    newton_inverse_shared,
)


def tokens(n=30, m=6, dim=8, dtype=torch.float64):
    torch.manual_seed(0)
    q, v = torch.randn(2, 2, 3, n, dim, dtype=dtype)
    return q, v, torch.randn(2, 3, m, dim, dtype=dtype)


def explicit_weights(q, landmarks, symmetric):
    """The N x N weights, with an inverse of the library's."""
    kernel = lambda x, y: (-0.5 * (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)).exp()
    a, p = kernel(landmarks, landmarks), kernel(landmarks, q)
    if symmetric:
        root = a.sum(-1).rsqrt().diag_embed()
        middle = root @ torch.linalg.inv(a) @ root
    else:
        middle = torch.linalg.inv(a + 0.01 * torch.eye(a.shape[-1], dtype=a.dtype))
    return p.transpose(-2, -1) @ middle @ p


@pytest.mark.parametrize("inverse", ["newton", "solve"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_explicit(inverse, symmetric):
    q, v, landmarks = tokens()
    out = gaussian_attention(q, None, v, landmarks=landmarks, scale=1.0, symmetric=symmetric, inverse=inverse)
    expected = explicit_weights(q, landmarks, symmetric) @ v
    torch.testing.assert_close(out, expected, atol=1e-5 if symmetric else 1e-9, rtol=0)


def test_all_tokens_as_landmarks_give_the_full_kernel():
    q, v, _ = tokens(dim=16)
    out = gaussian_attention(q, None, v, landmarks=q, scale=1.0, inverse="solve")
    kernel = gaussian_kernel(q, q)
    expected = kernel @ torch.linalg.solve(gaussian.add_ridge(kernel, 0.01), kernel @ v)
    torch.testing.assert_close(out, expected)
    assert (out - kernel @ v).abs().max() < 0.1  # what the ridge of 0.01 takes


def test_newton_converges_in_twenty_steps():
    landmarks = tokens(m=49, dim=32)[2]
    eye = torch.eye(49, dtype=torch.float64)
    a = gaussian_kernel(*[landmarks * 0.2] * 2)
    assert 50 < torch.linalg.cond(a).max() < 300
    assert ((a + 0.01 * eye) @ newton_inverse(a) - eye).abs().max() < 1e-4
    a = gaussian_kernel(*[landmarks * 0.3] * 2)  # SOFT++ has one starting scale for all and needs milder ones
    assert (a @ newton_inverse_shared(a) - eye).abs().max() < 1e-3


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_number_of_steps_is_an_option(symmetric):
    g = torch.Generator().manual_seed(0)
    q, v = (torch.randn(1, 2, 12, 4, generator=g, dtype=torch.float64) for _ in range(2))
    invert = newton_inverse_shared if symmetric else newton_inverse
    kernel = gaussian_kernel(q / 2**0.5, q / 2**0.5)
    root = kernel.sum(-1, keepdim=True).rsqrt() if symmetric else torch.ones(1, dtype=torch.float64)
    expected = kernel @ (root * (invert(kernel, steps=3) @ (root * (kernel @ v))))
    out = gaussian_attention(q, None, v, landmarks=q / 2**0.5, symmetric=symmetric, steps=3)
    assert torch.allclose(out, expected, atol=1e-10)


def test_a_landmark_is_exactly_like_itself():
    q, v, landmarks = tokens(m=1, dim=32, dtype=torch.float32)
    out = gaussian_attention(q, None, v, landmarks=landmarks.requires_grad_(), symmetric=True)
    assert not out.any()  # where SOFT++'s steps from a lone 1 lead; from a rounded 1 they double its error
    out.sum().backward()
    assert not landmarks.grad.any()


@pytest.mark.parametrize("size", [1, 1e3, 1e4, 1e6])
def test_landmarks_of_any_size_are_exactly_like_themselves(size):
    """Rounding grows with their squares, and was taken for a distance whose kernel is infinite."""
    _, _, landmarks = tokens(m=20, dim=32, dtype=torch.float32)
    landmarks = (landmarks * size).requires_grad_()
    kernel = landmark_kernel(landmarks)
    assert (kernel.diagonal(dim1=-2, dim2=-1) == 1).all() and kernel.isfinite().all()
    kernel.sum().backward()
    assert landmarks.grad.isfinite().all()


def test_landmarks_by_default_are_means_of_runs():
    q, v, _ = tokens(n=98)
    pooled = q.unflatten(2, (49, 2)).mean(3)
    expected = gaussian_attention(q, None, v, landmarks=pooled * 8**-0.25)
    torch.testing.assert_close(gaussian_attention(q, q, v), expected)
    assert gaussian_attention(q[:, :, :5], None, v[:, :, :5]).shape == (2, 3, 5, 8)


def test_inverse_has_the_gradient_of_an_inverse():
    q, _, landmarks = tokens(m=9)
    a = gaussian_kernel(landmarks, landmarks).requires_grad_()
    weight = torch.randn_like(a)
    (mine,) = torch.autograd.grad((newton_inverse(a) * weight).sum(), a)
    (theirs,) = torch.autograd.grad((torch.linalg.inv(gaussian.add_ridge(a, 0.01)) * weight).sum(), a)
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("inverse", ["newton", "solve"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients(inverse, symmetric):
    q, v, landmarks = (x[:1, :1].clone().requires_grad_() for x in tokens(n=7, m=4, dim=4))
    apply = lambda q, v, at: gaussian_attention(q, None, v, landmarks=at, symmetric=symmetric, inverse=inverse)
    assert gradcheck(apply, (q, v, landmarks), atol=1e-4)


@pytest.mark.parametrize("inverse", ["newton", "solve"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_coinciding_landmarks_stay_finite(inverse, symmetric):
    q, v, landmarks = tokens(dtype=torch.float32)
    same = landmarks[:, :, :1].expand_as(landmarks).clone().requires_grad_()
    out = gaussian_attention(q, None, v, landmarks=same, symmetric=symmetric, inverse=inverse)
    out.sum().backward()
    assert out.isfinite().all() and same.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_half_precision(dtype, symmetric):
    q, v, landmarks = tokens(n=4096, m=16, dim=32, dtype=dtype)
    out = gaussian_attention(q, None, v, landmarks=landmarks, scale=1.0, symmetric=symmetric)
    assert out.dtype == dtype
    expected = gaussian_attention(
        q.double(), None, v.double(), landmarks=landmarks.double(), scale=1.0, symmetric=symmetric
    )
    torch.testing.assert_close(out.double(), expected, atol=0.02, rtol=0.02)


def test_unknown_inverse():
    with pytest.raises(VisionKitError, match="inverse='lu'"):
        gaussian_attention(*tokens()[:2], tokens()[1], inverse="lu")


def test_solve_at_a_chosen_number_of_threads():
    """Batched LU factors of MKL were wrong from 256 landmarks on once a program had chosen its number of threads."""
    code = """
import torch
from visionkit.ops.gaussian import gaussian_attention
torch.set_num_threads(2)
torch.manual_seed(0)
for symmetric in (False, True):
    q, v = torch.randn(2, 4, 1024, 8), torch.randn(2, 4, 1024, 8)
    options = dict(landmarks=q[:, :, ::4], symmetric=symmetric, inverse="solve")
    half = gaussian_attention(q, None, v, **options)
    full = gaussian_attention(*(x.double() if torch.is_tensor(x) else x for x in (q, None, v)),
                              **dict(options, landmarks=options["landmarks"].double()))
    worst = (half - full).abs().max() / full.std()
    assert worst < 1e-2, (symmetric, worst)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("symmetric", [False, True])
def test_an_empty_batch_gives_an_empty_batch(symmetric):
    q, v, landmarks = (x[:0] for x in tokens())
    assert gaussian_attention(q, None, v, landmarks=landmarks, symmetric=symmetric).shape == v.shape
