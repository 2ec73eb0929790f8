import pytest
import torch
from kernels.compare import DEVICE, assert_same_forms, inputs
from visionkit_kernels import _common, nala

from visionkit.ops import dispatch
from visionkit.ops.nala import nala_attention
from visionkit.ops.rotary import rotary_table_2d


@pytest.mark.parametrize(
    "dtype, order, dim",
    [(torch.float64, "tokens", 8), (torch.float32, "channels", 24), (torch.bfloat16, "heads", 16)],
)
def test_nala(dtype, order, dim):
    """70 tokens are three tiles in two runs, the last tile nearly empty; 24 and 20 channels do not fill theirs."""
    tensors = inputs((1, 1, 70, dim), (1, 1, 70, dim), (1, 1, 70, 20), dtype=dtype, order=order)
    rotary = rotary_table_2d(7, 10, dim, dtype=torch.float64, device=DEVICE)
    tolerance = 1e-4 if dtype == torch.float32 else None  # the cube of a key, and the power of a query, are steep
    assert_same_forms(nala_attention, tensors, tolerance=tolerance, rotary=rotary)


@pytest.mark.parametrize("options", [dict(eps=0.0), dict(zero_guard=0.0), dict(eps=0.0, zero_guard=0.0)])
def test_no_division_by_zero_beyond_the_last_token(options):
    q, k, v = inputs(*[(1, 1, 40, 8)] * 3, dtype=torch.float64)
    k = k.detach().abs().requires_grad_()
    q = q.detach().abs().requires_grad_()
    assert_same_forms(nala_attention, [q, k, v], tolerance=1e-9, **options)


@pytest.mark.parametrize("channels", [3, slice(None)])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_a_number_is_not_hidden(which, channels):
    """Features of a NaN were 0, so that a diverged model went on."""
    tensors = inputs(*[(1, 1, 5, 8)] * 3, dtype=torch.float32)
    with torch.no_grad():
        tensors[which][0, 0, 2, channels] = torch.nan
    found = []
    for form in ("triton", "torch"):
        with dispatch.use_kernels(form):
            out = nala_attention(*tensors)
            found.append([x.isnan().any(-1) for x in (out, *torch.autograd.grad(out.sum(), tensors))])
    assert found[0][0][0, 0, 2] and all(torch.equal(*pair) for pair in zip(*found))


def test_batches_heads_zero_queries_and_no_rotation():
    q, k, v = inputs((2, 2, 3, 8), (2, 2, 5, 8), (2, 2, 5, 8), dtype=torch.float64, order="tokens")
    with torch.no_grad():
        q[0, 0, 1, 3] = 0
        k[0, 0, 1, 3] = 0
    assert_same_forms(nala_attention, [q, k, v], power=2.0)
    with torch.no_grad():
        q[0, 0, 1] = 0
    with dispatch.use_kernels("triton"):
        out = nala_attention(q, k, v)
    assert out[0, 0, 1].eq(0).all() and torch.autograd.grad(out.sum(), q)[0].isfinite().all()


@pytest.mark.parametrize("capability, little", [((8, 0), False), ((8, 6), True), ((9, 0), False), ((12, 0), True)])
def test_leaves_wide_float32_heads_to_pytorch_where_shared_memory_is_little(monkeypatch, capability, little):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert _common.little_shared_memory(torch.device("cuda")) == little
    monkeypatch.setattr(nala, "little_shared_memory", lambda device: little)
    x = torch.zeros(1, 1, 4, 64)
    assert ("shared memory" in (nala.refuses(x, x, x) or "")) == little
    assert nala.refuses(*[x.bfloat16()] * 3) is None and nala.refuses(*[x[..., :32]] * 3) is None
