import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from visionkit.errors import VisionKitError
from visionkit.ops.mala import elu_plus_one, mala_attention
from visionkit.ops.rotary import rotary_2d, rotary_table_2d

GRID = (4, 5)


def tokens(*lead, dim=8, dtype=torch.float64):
    torch.manual_seed(0)
    return torch.randn(3, *lead, GRID[0] * GRID[1], dim, dtype=dtype)


def rotary(dim=8, dtype=torch.float64):
    return rotary_table_2d(*GRID, dim, dtype=dtype)


def explicit_weights(q, k, table=None, normalise_rotated=False, eps=1e-6):
    """The N x N weights, as the docstring writes them."""
    n, s = q.shape[-2], q.shape[-1] ** -0.5
    q, k = F.elu(q) + 1, F.elu(k) + 1
    plain = s / n * q @ k.transpose(-2, -1)
    rotated = s / n * rotary_2d(q, *table) @ rotary_2d(k, *table).transpose(-2, -1) if table else plain
    z = (rotated if normalise_rotated else plain).sum(-1, keepdim=True)
    return (1 + 1 / (z + eps * z.sign())) * rotated - z / n


@pytest.mark.parametrize("with_rotary", [False, True])
@pytest.mark.parametrize("normalise_rotated", [False, True])
def test_equals_explicit(with_rotary, normalise_rotated):
    q, k, v = tokens(2, 3)
    table = rotary() if with_rotary else None
    out = mala_attention(q, k, v, rotary=table, normalise_rotated=normalise_rotated)
    torch.testing.assert_close(out, explicit_weights(q, k, table, normalise_rotated) @ v)


def test_rows_sum_to_one():
    q, k, _ = tokens(2, 3)
    ones = torch.ones(2, 3, q.shape[-2], 1, dtype=torch.float64)
    torch.testing.assert_close(mala_attention(q, k, ones, eps=0.0), ones)
    rotated = dict(rotary=rotary(), eps=0.0)
    torch.testing.assert_close(mala_attention(q, k, ones, normalise_rotated=True, **rotated), ones)
    assert (mala_attention(q, k, ones, **rotated) - 1).abs().max() > 1e-2


def test_longer_queries_are_more_decided():
    q, k, _ = tokens(1, 1)
    spread = [explicit_weights(scale * q.abs(), k).std(-1).mean() for scale in (1, 4)]
    assert spread[1] > 1.5 * spread[0]


@pytest.mark.parametrize("normalise_rotated", [False, True])
def test_gradients(normalise_rotated):
    q, k, v = (x[:, :, :6].clone().requires_grad_() for x in tokens(1, 2, dim=4))
    table = [x[:6] for x in rotary(4)]
    assert gradcheck(lambda *x: mala_attention(*x, rotary=table, normalise_rotated=normalise_rotated), (q, k, v))


def test_local_branch_and_gate():
    q, k, v = tokens(2, 3)
    torch.manual_seed(1)
    maps = torch.randn(2, 2, q.shape[-2], 3 * 8, dtype=torch.float64)
    local, gate = (x.unflatten(-1, (3, 8)).transpose(1, 2) for x in maps)
    out = mala_attention(q, k, v, rotary=rotary(), local=local, gate=gate)
    torch.testing.assert_close(out, (explicit_weights(q, k, rotary()) @ v + local) * gate)


def test_refuses_a_branch_without_a_gate_and_other_shapes():
    q, k, v = tokens(2, 3)
    with pytest.raises(VisionKitError, match="gate: is missing"):
        mala_attention(q, k, v, local=v)
    with pytest.raises(VisionKitError, match="local: is missing"):
        mala_attention(q, k, v, gate=v)
    with pytest.raises(VisionKitError, match=r"gate: expected the output's shape \(2, 3, 20, 8\), got \(2, 3, 20, 1\)"):
        mala_attention(q, k, v, local=v, gate=v[..., :1])


def test_feature_map_is_elu_plus_one():
    x = (torch.arange(-500, 501, dtype=torch.float64) * 0.06).requires_grad_()  # also 0, where the slope is 1
    torch.testing.assert_close(elu_plus_one(x), F.elu(x) + 1)
    x.grad = None
    elu_plus_one(x).sum().backward()
    mine, x.grad = x.grad, None
    F.elu(x).sum().backward()
    torch.testing.assert_close(mine, x.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_over_many_tokens(dtype):
    torch.manual_seed(0)
    q, k, v = 3 * torch.randn(3, 1, 1, 65536, 16) + 2
    table = rotary_table_2d(256, 256, 16)
    out = mala_attention(q.to(dtype), k.to(dtype), v.to(dtype), rotary=[x.to(dtype) for x in table])
    expected = mala_attention(q, k, v, rotary=table)
    assert out.isfinite().all() and (out - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_strongly_negative_queries_in_half_precision(dtype):
    """1 / z left float16's range, and its gradient did so before that."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 64, 16)
    given = [x.to(dtype).requires_grad_() for x in (q - 14, k, v)]
    out = mala_attention(*given)
    out.sum().backward()
    assert out.dtype == dtype and all(x.grad.isfinite().all() for x in given)
    expected = mala_attention(*(x.detach().double() for x in given))
    torch.testing.assert_close(out.double(), expected, atol=0.01, rtol=0.01)
