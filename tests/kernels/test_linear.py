import pytest
import torch
from kernels.compare import DEVICE, assert_same, inputs
from torch.nn import functional as F
from visionkit_kernels import linear, tiles

from visionkit.ops import dispatch
from visionkit.ops.attention import attend
from visionkit.ops.mala import mala_attention
from visionkit.ops.rotary import rotary_pairs, rotary_table_2d


def mala(form, **options):
    def run(*qkv):
        with dispatch.use_kernels(form):
            return mala_attention(*qkv, **options)

    return run


def table(height, width, dim):
    return rotary_table_2d(height, width, dim, dtype=torch.float64, device=DEVICE)


def test_mala_with_the_pairs_of_its_table_at_hand():
    tensors = inputs(*[(1, 2, 12, 8)] * 3, dtype=torch.float64)
    kept = table(3, 4, 8)
    run = lambda form: mala(form, rotary=(*kept, rotary_pairs(*kept)))
    assert_same(run("triton"), run("torch"), tensors)
    torch.testing.assert_close(run("triton")(*tensors), mala("triton", rotary=kept)(*tensors), rtol=0, atol=0)


@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_what_is_not_a_number_is_not_hidden(which):
    """The feature of a NaN was 1, so that a diverged model went on."""
    tensors = dict(zip("qkv", inputs(*[(1, 1, 5, 8)] * 3, dtype=torch.float32)))
    with torch.no_grad():
        tensors[which][0, 0, 2, 3] = torch.nan
    for form in ("triton", "torch"):
        assert mala(form)(*tensors.values()).isnan()[0, 0, 2].any(), form


@pytest.mark.parametrize("feature_map", ["relu", "relu2", "exp"])
def test_no_division_by_zero_beyond_the_last_token(feature_map):
    """With eps = 0 rows beyond the end made 0 times infinity, and spoilt the gradients of all keys."""
    q, k, v = inputs(*[(1, 1, 40, 8)] * 3, dtype=torch.float64)
    q, k = ((x.detach().abs() + 0.1).requires_grad_() for x in (q, k))
    run = lambda *x: linear.linear_attention(*x, feature_map=feature_map, eps=0.0)
    assert_same(run, lambda *x: explicit(*x, feature_map, "sum", eps=0.0), [q, k, v])
    rotated = dict(rotary=table(5, 8, 8), normalise_rotated=True, eps=0.0)
    assert_same(mala("triton", **rotated), mala("torch", **rotated), [q, k, v], tolerance=1e-9)


def test_tiny_sums_of_weights_do_not_overflow():
    q, k, v = inputs(*[(1, 1, 32, 8)] * 3, dtype=torch.float32)
    q, k = ((x.detach() - 24).requires_grad_() for x in (q, k))
    out = linear.linear_attention(q, k, v, eps=0.0)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), [q, k, v]))


kinds_of_heads = pytest.mark.parametrize(
    "dtype, order, dim, normalise_rotated",
    [
        (torch.float64, "tokens", 8, False),
        (torch.float64, "heads", 24, True),
        (torch.float32, "channels", 24, True),
        (torch.float16, "heads", 16, False),
        (torch.float16, "tokens", 96, False),
        (torch.bfloat16, "tokens", 16, False),
    ],
)


@kinds_of_heads
def test_mala(dtype, order, dim, normalise_rotated):
    """130 tokens are three tiles in two runs, the last tile nearly empty; 24 and 20 channels do not fill theirs."""
    tensors = inputs((1, 1, 130, dim), (1, 1, 130, dim), (1, 1, 130, 20), dtype=dtype, order=order)
    options = dict(rotary=table(10, 13, dim), normalise_rotated=normalise_rotated)
    assert_same(mala("triton", **options), mala("torch", **options), tensors)


def gated(form, **options):
    return lambda q, k, v, local, gate: mala(form, local=local, gate=gate, **options)(q, k, v)


@kinds_of_heads
def test_mala_with_a_local_branch_and_a_gate(dtype, order, dim, normalise_rotated):
    tensors = inputs(*[(1, 1, 130, dim)] * 2, *[(1, 1, 130, 20)] * 3, dtype=dtype, order=order)
    options = dict(rotary=table(10, 13, dim), normalise_rotated=normalise_rotated)
    assert_same(gated("triton", **options), gated("torch", **options), tensors)


def test_gate_and_branch_that_are_views_of_maps():
    """As in a model, where all but the branch are cuts of one projection."""
    tensors = inputs((1, 2, 5, 4 * 32), (1, 2, 5, 32), dtype=torch.float64)
    in_heads = lambda x: x.unflatten(-1, (2, 16)).transpose(1, 2)

    def run(form):
        def module(qkvo, branch):
            q, k, v, gate = (in_heads(x) for x in qkvo[0].chunk(4, dim=-1))
            return gated(form)(q, k, v, in_heads(branch[0]), gate)

        return module

    assert_same(run("triton"), run("torch"), tensors)


def test_gate_and_branch_that_repeat_themselves_in_memory():
    shape = 2, 2, 5, 16
    tensors = inputs(*[shape] * 3, (1, 2, 1, 1), (2, 1, 5, 1), dtype=torch.float64)
    run = lambda form: lambda q, k, v, local, gate: gated(form)(q, k, v, local.expand(shape), gate.expand(shape))
    assert_same(run("triton"), run("torch"), tensors)


def test_mala_of_batches_and_heads_without_rotation():
    tensors = inputs(*[(2, 2, 5, 16)] * 3, dtype=torch.float64, order="tokens")
    assert_same(mala("triton", scale=0.3), mala("torch", scale=0.3), tensors)


def explicit(q, k, v, feature_map, output, eps=1e-6):
    maps = dict(
        elu=lambda x: F.elu(x) + 1, relu=F.relu, exp=torch.exp, relu2=lambda x: F.relu(x) ** 2, none=lambda x: x
    )
    weights = maps[feature_map](q) @ maps[feature_map](k).mT
    if output == "sum":
        return weights @ v / (weights.sum(-1, keepdim=True) + eps)
    y = weights @ v / k.shape[-2]
    return y if output == "none" else F.normalize(y, dim=-1) * y.shape[-1] ** 0.5


@pytest.mark.parametrize(
    "feature_map, output", [("elu", "sum"), ("relu", "none"), ("exp", "sum"), ("relu2", "rms"), ("none", "none")]
)
def test_feature_maps_and_outputs(feature_map, output):
    tensors = inputs((1, 1, 3, 6), (1, 1, 7, 6), (1, 1, 7, 4), dtype=torch.float64)
    options = dict(feature_map=feature_map, output=output)
    assert_same(
        lambda *x: linear.linear_attention(*x, **options), lambda *x: explicit(*x, feature_map, output), tensors
    )


# on 80 half precision, too, makes the state's gradient in a pass of its own
wide_heads = pytest.mark.parametrize(
    "dtype, dim, architecture",
    [
        (torch.float32, 96, 90),
        (torch.bfloat16, 128, 80),
        (torch.bfloat16, 96, 90),
        (torch.float32, 128, 80),
        pytest.param(torch.bfloat16, 96, 80, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, 128, 90, marks=pytest.mark.slow),
        pytest.param(torch.float16, 128, 80, marks=pytest.mark.slow),
        pytest.param(torch.float64, 128, 90, marks=pytest.mark.slow),
    ],
)


@wide_heads
def test_wide_heads_of_mala_with_a_local_branch_and_a_gate(dtype, dim, architecture):
    """Their state is too large for a program: S is read again for every tile, and dS summed by another kernel."""
    tensors = inputs(*[(1, 1, 40, dim)] * 5, dtype=dtype, order="tokens")
    options = dict(rotary=table(5, 8, dim))
    with tiles.compiling_for(architecture):
        assert_same(gated("triton", **options), gated("torch", **options), tensors)


@wide_heads
@pytest.mark.parametrize("feature_map, output", [("elu", "sum"), ("relu2", "rms"), ("none", "none")])
def test_outputs_of_wide_heads(feature_map, output, dtype, dim, architecture):
    tensors = inputs((1, 2, 20, dim), (1, 2, 33, dim), (1, 2, 33, 72), dtype=dtype, order="heads")
    kernel = lambda *x: linear.linear_attention(*x, feature_map=feature_map, output=output)
    with tiles.compiling_for(architecture):
        assert_same(kernel, lambda *x: explicit(*x, feature_map, output), tensors)


@pytest.mark.parametrize(
    "name, options",
    [
        ("linear", {}),
        ("norm", {}),
        ("linear", dict(feature_map="relu")),
        ("linear", dict(feature_map="exp", output="none")),
        ("linear", dict(feature_map="relu2", output="rms")),
        ("linear", dict(feature_map="none", output="rms")),
    ],
)
def test_attention_by_name_uses_the_kernel(name, options):
    tensors = inputs(*[(1, 1, 9, 16)] * 3, dtype=torch.float32)
    forms = {}
    for form in ("triton", "torch"):
        with dispatch.use_kernels(form):
            forms[form] = attend(name, *tensors, **options)
    torch.testing.assert_close(forms["triton"], forms["torch"], atol=1e-5, rtol=1e-5)
    assert "linear_attention" in type(forms["triton"].grad_fn).__name__


def test_torch_compile_sees_one_graph():
    tensors = inputs(*[(1, 1, 5, 8)] * 3, dtype=torch.float32)
    with dispatch.use_kernels("triton"):
        compiled = torch.compile(mala_attention, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(*tensors), mala_attention(*tensors))


def test_torch_compile_differentiates_through_the_gate():
    tensors = inputs(*[(1, 1, 5, 8)] * 5, dtype=torch.float32)
    run = lambda q, k, v, local, gate: mala_attention(q, k, v, local=local, gate=gate)
    with dispatch.use_kernels("triton"):
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        for actual, expected in zip(*(torch.autograd.grad(f(*tensors).sum(), tensors) for f in (compiled, run))):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_leaves_wide_heads_to_pytorch_where_shared_memory_is_little(monkeypatch, dtype):
    x = torch.zeros(1, 1, 4, 96, dtype=dtype)
    assert linear.refuses(x, x, x) is None
    monkeypatch.setattr(linear, "little_shared_memory", lambda device: True)
    assert "shared memory" in linear.refuses(x, x, x) and linear.refuses(*[x[..., :64]] * 3) is None


def test_refuses_what_it_cannot_do():
    assert "at most 128" in linear.refuses(*[torch.zeros(1, 1, 4, 130)] * 3)
    assert "empty" in linear.refuses(*[torch.zeros(1, 1, 0, 8)] * 3)
