import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from visionkit.backbones.layers import (
    HAS_ONEDNN,
    ConvNorm,
    add_branch,
    is_smaller_than_weights,
    linear,
    linear_gelu,
    suits_onednn,
)


@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
def test_linear_is_the_formula_with_and_without_gradients(gelu):
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 40), torch.randn(2, 5, 7, 24)

    def ours(layer, x):
        return linear(layer, x) if gelu is None else linear_gelu(layer, x, gelu)

    exact = x.double() @ layer.weight.double().T + layer.bias.double()
    exact = F.gelu(exact, approximate=gelu) if gelu else exact
    torch.testing.assert_close(ours(layer, x).double(), exact, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert suits_onednn(layer, x) == HAS_ONEDNN
        torch.testing.assert_close(ours(layer, x).double(), exact, atol=1e-5, rtol=1e-5)
        narrow, strided = ours(layer.bfloat16(), x.bfloat16()), x.transpose(1, 2)
        assert narrow.dtype == torch.bfloat16
        torch.testing.assert_close(ours(layer.float(), strided), ours(layer, strided.contiguous()))


@pytest.mark.parametrize("onto", [False, True])
@pytest.mark.parametrize("gamma", [False, True])
def test_linear_scales_and_adds_with_and_without_gradients(gamma, onto):
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 40), torch.randn(2, 5, 7, 24)
    gamma, onto = torch.randn(40) if gamma else None, torch.randn(2, 5, 7, 40) if onto else None
    exact = x.double() @ layer.weight.double().T + layer.bias.double()
    exact = (0 if onto is None else onto.double()) + exact * (1 if gamma is None else gamma.double())
    kept = None if onto is None else onto.clone()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            y = linear(layer, x, gamma, onto=onto)
        torch.testing.assert_close(y.double(), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(onto, kept, atol=0, rtol=0)


def test_a_branch_is_added_whether_or_not_something_is_dropped():
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 8), torch.randn(1000, 8)

    def branch(x, onto=None):
        return linear(layer, x, onto=onto)

    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for drop in (nn.Identity(), nn.Dropout(0.5).eval(), DropPath(0.5).eval()):
                torch.testing.assert_close(add_branch(x, drop, branch, x), x + layer(x))
            added = add_branch(x, DropPath(0.5), branch, x) - x
            dropped = added.eq(0).all(dim=1)
            assert 400 < dropped.sum() < 600
            torch.testing.assert_close(added[~dropped], 2 * layer(x)[~dropped], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mavit_tiny", "nalaformer_xtiny", "soft_tiny"])
def test_a_hook_sees_the_branch_alone(name):
    torch.manual_seed(0)
    model, image = timm.create_model(name).eval(), torch.randn(1, 3, 64, 64)
    block, seen = model.stages[1].blocks[0], []
    drop = block.drop if name == "soft_tiny" else block.drop_path
    head = [] if name == "soft_tiny" else [model.proj, model.norm]  # eval folds one into the other
    for part in (block.attn, drop, *head):
        part.register_forward_hook(lambda *args: seen.append(args[2].detach()))
    model(image)
    with torch.no_grad():
        model(image)
    assert len(seen) == 2 * (3 + len(head))  # the drop twice in a pass
    for watched, inference in zip(seen, seen[len(seen) // 2 :]):
        torch.testing.assert_close(watched, inference, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen[0], seen[1])


class Means(nn.Module):
    """As a user may put in an attention's place."""

    def forward(self, x, *others):
        return x.mean(dim=(1, 2), keepdim=True).expand_as(x)


@pytest.mark.parametrize("name", ["mavit_tiny", "nalaformer_xtiny", "soft_tiny"])
def test_another_module_in_a_branch_runs_in_inference_too(name):
    """It was asked to add the map itself."""
    torch.manual_seed(0)
    model, image = timm.create_model(name).eval(), torch.randn(1, 3, 64, 64)
    for stage in model.stages:
        stage.blocks[0].attn = Means()
    expected = model(image)
    with torch.no_grad():
        torch.testing.assert_close(model(image), expected, atol=1e-5, rtol=1e-4)


def test_forward_mode_gradients_pass():
    torch.manual_seed(0)
    layer, conv, x = nn.Linear(8, 8), ConvNorm(8, 8, 1, "relu").eval(), torch.randn(2, 9, 9, 8)
    for function in (lambda x: linear(layer, x), lambda x: linear_gelu(layer, x), conv):
        expected = torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]
        with torch.no_grad():
            found = torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected)


class Adapted(nn.Linear):
    """As adapters of low rank are: more than its weights."""

    def forward(self, x):
        return super().forward(x) + 1


def test_an_adapted_layer_is_called():
    torch.manual_seed(0)
    layer, x, gamma = Adapted(8, 8), torch.randn(3, 8), torch.randn(8)
    expected = (F.linear(x, layer.weight, layer.bias) + 1) * gamma
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(linear(layer, x, gamma), expected)
            torch.testing.assert_close(linear(layer, x, gamma, x), x + expected)


def test_linear_does_not_escape_hooks_counters_or_autocast():
    layer, x, seen = nn.Linear(24, 40), torch.randn(3, 24), []
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            linear_gelu(layer, x)
        assert counter.get_total_flops() == 2 * 3 * 24 * 40
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(layer, x).dtype == torch.bfloat16
        layer.register_forward_hook(lambda *_: seen.append(1))
        linear(layer, x)
    assert seen == [1]


@pytest.mark.parametrize("side", [4, 33])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_folded_norm_is_the_norm(dtype, activation, side):
    torch.manual_seed(0)
    layer = ConvNorm(32, 8, 2, activation).to(dtype)
    x = torch.randn(2, side, side - 2, 32, dtype=dtype)
    for _ in range(3):
        layer(x)
    layer.eval()
    with torch.no_grad():
        fused = HAS_ONEDNN and dtype == torch.float32
        assert suits_onednn(layer.conv, x.permute(0, 3, 1, 2)) == fused
    activate = dict(none=lambda y: y, relu=F.relu, gelu=F.gelu)[activation]
    expected = activate(layer.norm(layer.conv(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)
    assert is_smaller_than_weights(x.permute(0, 3, 1, 2), layer.conv) == (side == 4)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(layer(x), expected)
    assert layer.conv.weight.is_contiguous(memory_format=torch.channels_last)
