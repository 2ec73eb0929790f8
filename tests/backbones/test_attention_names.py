"""Every attention of the library by its name in a ViT and in MAViT."""

import pytest
import torch
from backbones.tiny_vit import FEW, tiny_vit

from visionkit.backbones.attention import AttentionCore, set_attention
from visionkit.backbones.attention import attention_names as layer_names
from visionkit.backbones.mavit import MAViT
from visionkit.backbones.nalaformer import NaLaFormer
from visionkit.errors import VisionKitError
from visionkit.ops import attention_names, rotary_table_2d


def trains(model, image):
    y = model(image)
    assert y.shape == (2, 5) and y.isfinite().all()
    y.square().sum().backward()
    own = [p for name, p in model.named_parameters() if ".core.own." in name]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in own)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_the_layer_knows_every_name():
    assert set(attention_names()) <= set(layer_names())


@pytest.mark.parametrize("name", attention_names())
def test_in_a_vit(name):
    image, plain = torch.randn(2, 3, 16, 16), tiny_vit()
    model = set_attention(tiny_vit(), name, **FEW.get(name, {}))
    trains(model, image)
    if name != "softmax":
        assert not torch.allclose(model(image), plain(image))
    else:
        torch.testing.assert_close(model(image), plain(image))


@pytest.mark.parametrize("name", attention_names())
def test_in_mavit(name):
    torch.manual_seed(0)
    options = dict(dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), projection=16, num_classes=5)
    trains(MAViT(attention=name, **options), torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("model", [MAViT, NaLaFormer])
@pytest.mark.parametrize("name", attention_names())
def test_of_one_token(name, model):
    """The last stage has a single token, whose variance made GAAM's output NaN."""
    torch.manual_seed(0)
    small = model(attention=name, dims=(8,) * 4, depths=(1,) * 4, num_heads=(1,) * 4, num_classes=5)
    y = small(torch.randn(2, 3, 32, 32))
    y.square().sum().backward()
    assert y.isfinite().all() and all(p.grad.isfinite().all() for p in small.parameters() if p.grad is not None)


@pytest.mark.parametrize("shape", [(0, 3, 5, 8), (2, 3, 0, 8)])
@pytest.mark.parametrize("name", layer_names())
def test_nothing_in_gives_nothing_out(name, shape):
    core = AttentionCore(name, 3, 8)
    q, k, v = torch.randn(3, *shape, requires_grad=True).unbind(0)
    y = core(q, k, v, rotary=rotary_table_2d(1, shape[2], 8))
    assert y.shape == shape
    y.sum().backward()
    assert not any(p.grad.any() for p in core.parameters())


@pytest.mark.parametrize("name", layer_names())
def test_queries_without_keys_are_told_so(name):
    q, nothing = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 0, 8)
    with pytest.raises(VisionKitError, match="4 queries have no keys"):
        AttentionCore(name, 3, 8)(q, nothing, nothing)
