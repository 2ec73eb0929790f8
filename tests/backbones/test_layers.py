import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from visionkit.backbones.layers import (
    HAS_ONEDNN,
    ConvNorm,
    RotaryTable,
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


@pytest.mark.parametrize("hook", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_backward_hook_sees_a_layer(hook):
    layer, seen = nn.Linear(8, 8), []
    getattr(layer, hook)(lambda *_: seen.append(1) or None)
    linear(layer, torch.randn(3, 8, requires_grad=True), gamma=torch.randn(8)).sum().backward()
    assert seen == [1]


def test_a_global_hook_sees_every_part():
    torch.manual_seed(0)
    options = dict(dims=(32, 32, 64, 64), num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 1))
    model, image, seen = timm.create_model("soft_tiny", **options).eval(), torch.randn(1, 3, 64, 64), set()
    hook = register_module_forward_hook(lambda module, *_: seen.add(module) and None)
    try:
        with torch.no_grad():
            model(image)
    finally:
        hook.remove()
    containers = (nn.ModuleList, nn.ModuleDict, nn.ParameterDict)
    assert not [part for part in model.modules() if part not in seen and not isinstance(part, containers)]


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


@pytest.mark.parametrize("name", ["mavit_tiny", "nalaformer_xtiny", "soft_tiny"])
def test_a_subclass_need_not_add_the_map_itself(name):
    torch.manual_seed(0)
    model, image = timm.create_model(name).eval(), torch.randn(1, 3, 64, 64)
    own = type(model.stages[0].blocks[0].attn)

    class Doubled(own):
        def forward(self, x, *others):
            return 2 * super().forward(x, *others)

    model.stages[0].blocks[0].attn.__class__ = Doubled
    expected = model(image)
    with torch.no_grad():
        torch.testing.assert_close(model(image), expected, atol=1e-5, rtol=1e-4)


class Doubling(nn.BatchNorm2d):
    """As norms with an activation of their own are."""

    def forward(self, x):
        return 2 * super().forward(x)


NORMS = dict(
    group=lambda: nn.GroupNorm(2, 8),
    without_statistics=lambda: nn.BatchNorm2d(8, track_running_stats=False),
    without_weights=lambda: nn.BatchNorm2d(8, affine=False),
    subclass=lambda: Doubling(8),
    none=nn.Identity,
)


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_that_cannot_be_folded_is_called(norm):
    torch.manual_seed(0)
    layer, x = ConvNorm(8, 8).eval(), torch.randn(2, 16, 16, 8)
    layer.norm = NORMS[norm]().eval()
    expected = layer.norm(layer.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(layer(x), expected)


class Interrupted(RotaryTable):
    """Another thread asks for a grid whenever an attribute is set."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if getattr(self, "other", None) is not None:
            grid, self.__dict__["other"] = self.other, None
            self.__dict__["found"] = self(grid)


def test_threads_that_share_a_rotary_table_each_get_their_own():
    table, own, other = Interrupted(8), torch.zeros(1, 3, 3, 8), torch.zeros(1, 4, 4, 8)
    table(other)
    table.__dict__["other"] = other
    assert [len(each) for each in table(own)] == [9] * 3
    assert [len(each) for each in table.found] == [16] * 3


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
    assert all(value.is_contiguous() for value in layer.state_dict().values())  # or safetensors refuses them
