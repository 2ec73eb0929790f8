"""Every model as timm tests its own: forward, backward, features, checkpointing, meta device, odd sizes."""

import copy
import math
from functools import partial

import pytest
import timm
import torch
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import visionkit.backbones  # noqa: F401
from visionkit.backbones.soft import SoftBlock
from visionkit.errors import VisionKitError

MILLIONS = dict(
    soft_tiny=13.069,
    soft_small=24.110,
    soft_medium=45.813,
    soft_large=64.701,
    soft_huge=87.108,
    mavit_tiny=16.449,
    mavit_small=27.143,
    mavit_base=49.793,
    mavit_large=97.766,
    nalaformer_xtiny=6.142,
    nalaformer_tiny=15.908,
    nalaformer_small=25.654,
    nalaformer_base=52.003,
    nalaformer_large=95.427,
)
MILLIONS |= {name.replace("soft_", "soft_norm_"): count for name, count in MILLIONS.items() if name[:5] == "soft_"}
SMALL = ["mavit_tiny", "nalaformer_xtiny", "soft_tiny", "soft_norm_tiny"]


def narrow(name, **options):
    """The family's shape at a size at which a test takes no time."""
    thin = dict(dims=(32, 32, 64, 64), num_heads=(1, 1, 2, 2), depths=(1, 2, 1, 1), num_classes=7)
    return timm.create_model(name, **dict(thin, **options))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", MILLIONS)
def test_on_meta(name):
    with torch.device("meta"):
        model = timm.create_model(name)
        assert model(torch.zeros(2, 3, 64, 96)).shape == (2, 1000)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(MILLIONS[name], abs=6e-4)


@pytest.mark.parametrize("name", SMALL)
def test_the_same_with_and_without_gradients(name):
    """Inference goes other ways: linear layers by oneDNN, norms folded into convolutions."""
    model = narrow(name).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    image = torch.randn(2, 3, 96, 64)
    watched = model(image)
    assert watched.requires_grad and watched.std() > 1e-3
    with torch.no_grad():
        torch.testing.assert_close(model(image), watched.detach(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in MILLIONS if name not in SMALL])
def test_large_ones_forward_once(name):
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for key, value in model.state_dict().items():
            is_one = key.endswith(("running_var", "norm.weight")) or not value.is_floating_point()
            value.fill_(1) if is_one else value.normal_(0, 0.02)
        out = model(torch.randn(1, 3, 33, 32))
    assert out.shape == (1, 1000) and out.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_forward_backward_and_checkpointing(name):
    model = narrow(name).train()
    image = torch.randn(2, 3, 64, 64)
    gradients = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        torch.manual_seed(1)  # the same dropout
        model(image).square().sum().backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == {key for key, _ in model.named_parameters()}
    for key, gradient in gradients[0].items():
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_eval_folding_changes_nothing(name):
    model = narrow(name)
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, 3, 64, 64) + 0.3)  # batch norm statistics
    model = model.eval().double()
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = model(image)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.training = True  # the path without folding, on the same statistics
            norm.forward = partial(with_running_statistics, norm)
    torch.testing.assert_close(model(image), expected)


def with_running_statistics(norm, x):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(225, 301), (32, 32), (33, 65)])
def test_features_at_odd_sizes(name, size):
    model = timm.create_model(name, features_only=True, in_chans=4).eval()
    assert model.feature_info.reduction() == [4, 8, 16, 32] and model.feature_info.out_indices == (0, 1, 2, 3)
    with torch.no_grad():
        maps = model(torch.randn(1, 4, *size))
    for each, channels, reduction in zip(maps, model.feature_info.channels(), (4, 8, 16, 32)):
        assert each.shape == (1, channels, *(math.ceil(side / reduction) for side in size))
        assert each.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_intermediates(name):
    model = narrow(name).eval()
    image = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        features, maps = model.forward_intermediates(image)
        torch.testing.assert_close(features, model.forward_features(image))
        torch.testing.assert_close(model.forward_head(features), model(image))
        last = model.forward_intermediates(image, indices=[1], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(last, maps[1:2])
        first, (same,) = model.forward_intermediates(image, indices=[0], stop_early=True)
        torch.testing.assert_close(same, maps[0])
        assert first.numel() == same.numel()
    chosen = narrow(name, features_only=True, out_indices=(-1, 1), num_classes=0)
    assert chosen.feature_info.channels() in ([32, 64], [64, 32])


@pytest.mark.parametrize("indices", [[], [4], [-5], 0, 5])
def test_wrong_stages(indices):
    model = narrow("soft_tiny")
    for choose in (partial(model.forward_intermediates, torch.randn(1, 3, 32, 32)), model.prune_intermediate_layers):
        with pytest.raises(VisionKitError, match="expected stages from 0 to 3, or how many of the last"):
            choose(indices)
    with pytest.raises(VisionKitError, match="num_classes=-1"):
        model.reset_classifier(-1)


@pytest.mark.parametrize("name", SMALL)
def test_a_shorter_model_has_no_parameter_that_takes_no_part(name):
    model = narrow(name)
    model.prune_intermediate_layers([0, 2])
    model(torch.randn(2, 3, 64, 48)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_a_pruned_model_can_be_pruned_again_and_given_a_classifier(name):
    model = narrow(name).eval()
    image = torch.randn(2, 3, 64, 48)
    model.prune_intermediate_layers([0, 2])
    model.prune_intermediate_layers([0, 1])
    assert len(model.stages) == 2 and model(image).shape in [(2, 32, 8, 6), (2, 48, 32)]
    model.reset_classifier(3, "avg")
    assert model(image).shape == (2, 3)
    with pytest.raises(VisionKitError, match="global_pool='token': .* takes one of 'avg', ''"):
        model.reset_classifier(3, "token")


@pytest.mark.parametrize("name", SMALL)
def test_a_hook_on_a_stage_sees_its_map(name):
    model, seen = narrow(name).eval(), []
    model.stages[1].register_forward_hook(lambda stage, inputs, output: seen.append(output.shape))
    model(torch.randn(1, 3, 64, 96))
    assert seen == [(1, 8, 12, 32)]


@pytest.mark.parametrize("name", SMALL)
def test_an_empty_batch(name):
    with torch.no_grad():
        assert narrow(name).eval()(torch.randn(0, 3, 64, 64)).shape == (0, 7)


def test_a_gradient_for_each_image():
    model = narrow("soft_tiny").eval()
    weights, images = dict(model.named_parameters()), torch.randn(2, 3, 32, 32)

    def loss(weights, image):
        return torch.func.functional_call(model, weights, (image[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, images)
    for i, image in enumerate(images):
        expected = torch.func.grad(loss)(weights, image)
        torch.testing.assert_close({key: grad[i] for key, grad in each.items()}, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_a_model_can_be_copied_after_a_transform(name):
    model, images = narrow(name).eval(), torch.randn(2, 3, 32, 32)

    def loss(image):
        return model(image[None]).square().sum()

    torch.func.vmap(torch.func.grad(loss))(images)
    torch.testing.assert_close(copy.deepcopy(model)(images), model(images))


@pytest.mark.parametrize("name", SMALL)
def test_half_a_model_with_norms_in_float32(name):
    """As mixed precision of old keeps them; the other layers cast what the norms give."""
    model, image = narrow(name).eval(), torch.randn(1, 3, 64, 64)
    expected = model(image)
    model.bfloat16()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.float()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert (model(image.bfloat16()).float() - expected).abs().max() < 0.2 * expected.std()


class Halves(torch.Tensor):
    """As quantised weights are: another tensor within, which is made whole where a layer multiplies by it."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float32, requires_grad=False)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, meta, size, stride):
        return cls(inner["inner"])

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            return F.linear(*(arg.inner.float() if type(arg) is cls else arg for arg in args), **(kwargs or {}))
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise NotImplementedError(function)


@pytest.mark.parametrize("name", SMALL)
def test_weights_of_another_kind(name):
    model, image = narrow(name).eval(), torch.randn(1, 3, 64, 64)
    expected = model(image)
    for part in model.modules():
        if type(part) is torch.nn.Linear:
            part.weight = torch.nn.Parameter(Halves(part.weight.detach().bfloat16()), requires_grad=False)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert (model(image) - expected).abs().max() < 0.2 * expected.std()


@pytest.mark.parametrize("name", SMALL)
def test_wrapped_layers(name):
    model, image = narrow(name).eval(), torch.randn(1, 3, 64, 64)

    class Wrapped(torch.nn.Module):  # as adapters of low rank are, without the weights' names
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x)

    with torch.no_grad():
        expected = model(image)
        for owner in list(model.modules()):
            for key, layer in list(owner.named_children()):
                if isinstance(layer, torch.nn.Linear):
                    owner._modules[key] = Wrapped(layer)
        torch.testing.assert_close(model(image), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_quantised_layers(name):
    quantization = pytest.importorskip("torch.ao.quantization")
    model, image = narrow(name).eval(), torch.randn(1, 3, 64, 64)
    quantised = quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        expected = model(image)
        assert (quantised(image) - expected).abs().max() < 0.5 * expected.std()


def test_softs_local_branch_is_a_layer_that_is_called():
    model, seen = narrow("soft_tiny").eval(), []
    local, image = model.stages[0].blocks[0].attn.local, torch.randn(1, 3, 64, 64)
    assert local.weight.shape == (1, 1, 9, 9)
    with torch.no_grad():
        expected = model(image)
        local.register_forward_hook(lambda *_: seen.append(1) or None)
        weight_norm(local)
        torch.testing.assert_close(model(image), expected)
        assert seen == [1]
        prune.random_unstructured(model.stages[1].blocks[0].attn.local, "weight", 1.0)
        assert not torch.allclose(model(image), expected)


@pytest.mark.parametrize("name", SMALL)
def test_classifier(name):
    model = narrow(name).eval()
    image = torch.randn(2, 3, 32, 32)
    assert model.get_classifier().out_features == 7
    model.reset_classifier(3)
    assert model(image).shape == (2, 3)
    model.reset_classifier(0)
    assert model(image).shape == (2, model.head_hidden_size)
    assert model.forward_head(model.forward_features(image), pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model(image).dim() in (3, 4)
    cfg = timm.create_model(name).default_cfg
    names = dict(narrow(name).named_parameters())
    assert cfg["classifier"] + ".weight" in names and cfg["first_conv"] + ".weight" in names


@pytest.mark.parametrize("name", SMALL)
def test_groups_and_decay(name):
    from timm.optim import param_groups_layer_decay

    model = narrow(name)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    scales = {group["lr_scale"] for group in groups}
    assert len(scales) > 4 and max(scales) == 1.0
    assert model.no_weight_decay() <= set(dict(model.named_parameters()))


@pytest.mark.parametrize("name", SMALL)
def test_state_round_trip_and_drop_path(name):
    model, other = narrow(name).eval(), narrow(name).eval()
    image = torch.randn(1, 3, 64, 64)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(image), other(image))
    assert narrow(name, drop_path_rate=0.5).train()(image.expand(2, -1, -1, -1)).isfinite().all()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name, dtype):
    model = narrow(name).eval().to(dtype)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 96, 64).to(dtype)).isfinite().all()


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_soft_in_float16_on_a_plain_map_of_1024_pixels(autocast, symmetric):
    torch.manual_seed(0)
    options = dict(symmetric=symmetric, inverse="solve", landmark="pool", max_landmarks=49)
    block = SoftBlock(32, 1, 0.0, ratio=8, local_size=3, **options).eval()
    torch.nn.init.constant_(block.attn.v.bias, 2.0)  # rows of equal tokens sum to twice their number: 131 072
    x = torch.zeros(1, 256, 256, 32)
    with torch.no_grad():
        expected = block(x)
        if not autocast:
            block, x = block.half(), x.half()
        with torch.autocast("cpu", torch.float16, enabled=autocast):
            found = block(x)
    assert found.dtype == (torch.float32 if autocast else torch.float16)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_at_1024(name, dtype):
    model = timm.create_model(name).eval().to(dtype)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 1024, 1024).to(dtype)).isfinite().all()


def test_device_and_dtype_arguments():
    assert narrow("mavit_tiny", device="meta").head.weight.is_meta
    assert narrow("soft_tiny", dtype=torch.float64).head.weight.dtype == torch.float64


@pytest.mark.parametrize("name", SMALL)
def test_small_images_are_refused(name):
    with pytest.raises(VisionKitError, match="31 x 40 pixels: .* at least 32"):
        narrow(name)(torch.randn(1, 3, 31, 40))
