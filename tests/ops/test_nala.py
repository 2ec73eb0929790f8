import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from visionkit.errors import VisionKitError
from visionkit.ops.nala import nala_attention
from visionkit.ops.rotary import rotary_2d, rotary_table_2d


def tokens(lead=(2, 3), n=20, dim=8):
    torch.manual_seed(0)
    return torch.randn(3, *lead, n, dim, dtype=torch.float64)


def explicit(q, k, v, table=None, cosine=False, eps=1e-6):
    """All pairs, one feature half after the other."""
    norm = q.norm(dim=-1, keepdim=True)
    d, exponent = q / norm, 3 * (0.5 + torch.tanh(norm))
    if cosine:
        dk = k / k.norm(dim=-1, keepdim=True)
        qs = (d.abs() ** exponent * d.cos(), d.abs() ** exponent * d.sin())
        ks = (k.abs() ** 3 * dk.cos(), k.abs() ** 3 * dk.sin())
    else:
        qs = (F.relu(q) / norm) ** exponent, (F.relu(-q) / norm) ** exponent
        ks = F.relu(k**3), F.relu(-(k**3))
    weights = sum(a @ b.transpose(-2, -1) for a, b in zip(qs, ks))
    z = weights.mean(-1, keepdim=True) + eps
    if table:
        weights = sum(rotary_2d(a, *table) @ rotary_2d(b, *table).transpose(-2, -1) for a, b in zip(qs, ks))
    return weights / q.shape[-2] / z @ v


@pytest.mark.parametrize("with_rotary", [False, True])
@pytest.mark.parametrize("feature_map", ["signs", "cosine"])
def test_equals_explicit(with_rotary, feature_map):
    q, k, v = tokens()
    table = rotary_table_2d(4, 5, 8, dtype=torch.float64) if with_rotary else None
    out = nala_attention(q, k, v, rotary=table, feature_map=feature_map)
    torch.testing.assert_close(out, explicit(q, k, v, table, feature_map == "cosine"))


@pytest.mark.parametrize("feature_map", ["signs", "cosine"])
def test_gradients(feature_map):
    q, k, v = (x.clone().requires_grad_() for x in tokens((1, 1), 5, 4))
    assert gradcheck(lambda *x: nala_attention(*x, feature_map=feature_map), (q, k, v))


@pytest.mark.parametrize("feature_map", ["signs", "cosine"])
def test_second_derivatives(feature_map):
    """A feature of 0, which half of those of signs are, gave NaN."""
    q, k, v = (x.clone() for x in tokens((1, 1), 5, 4))
    q[..., 0, 0] = 0
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    # with an exponent above 2 the second derivative is continuous, as numerical ones need
    assert gradgradcheck(lambda *x: nala_attention(*x, feature_map=feature_map, offset=1.0), (q, k, v))
    (grad,) = torch.autograd.grad(nala_attention(q, k, v, feature_map=feature_map).sum(), q, create_graph=True)
    assert torch.autograd.grad(grad.sum(), q)[0].isfinite().all()


def test_rows_sum_to_one_without_rotation():
    q, k, _ = tokens()
    ones = torch.ones(2, 3, 20, 1, dtype=torch.float64)
    torch.testing.assert_close(nala_attention(q, k, ones, eps=0.0), ones)


@pytest.mark.parametrize("feature_map", ["signs", "cosine"])
def test_zero_queries_give_numbers(feature_map):
    q, k, v = tokens()
    q[:, :, 3] = 0
    q.requires_grad_()
    out = nala_attention(q, k, v, feature_map=feature_map)
    out.sum().backward()
    assert out.isfinite().all() and q.grad.isfinite().all()
    assert nala_attention(q, k, v, feature_map=feature_map, zero_guard=0.0).isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    q, k, v = (4 * tokens((1, 1), 4096)).to(dtype)
    out = nala_attention(q, k, v)
    assert out.dtype == dtype and out.isfinite().all()
    torch.testing.assert_close(out.double(), explicit(q.double(), k.double(), v.double()), atol=0.05, rtol=0.02)


def test_unknown_map():
    with pytest.raises(VisionKitError, match="feature_map='sine'"):
        nala_attention(*tokens(), feature_map="sine")
