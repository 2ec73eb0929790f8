import pytest
import torch
from backbones.tiny_vit import tiny_vit
from torch import nn
from torch.nn import functional as F

from visionkit.backbones.calibration import calibrated_attention
from visionkit.errors import VisionKitError
from visionkit.ops.attention.act import calibrate_sinks


def test_a_loaded_model_is_calibrated_and_left_as_it_was():
    model, image = tiny_vit(), torch.randn(2, 3, 16, 16)
    plain = model(image)
    with calibrated_attention(model, threshold=0.055, beta=0.4) as maps:
        changed = model(image)
        assert [tuple(x.shape) for x in maps.sinks] == [(2, 2, 17)] * 3
        model(image)
        assert len(maps.received) == 3
    assert any(x.any() for x in maps.sinks) and not any(x[..., 0].any() for x in maps.sinks)
    assert not torch.allclose(changed, plain)
    assert torch.equal(model(image), plain)


def test_beta_of_one_changes_nothing():
    model, image = tiny_vit(), torch.randn(2, 3, 16, 16)
    with calibrated_attention(model, threshold=0.0, beta=1.0):
        torch.testing.assert_close(model(image), tiny_vit()(image))


def test_one_layer_and_one_head():
    model, image = tiny_vit(), torch.randn(1, 3, 16, 16)
    attention, seen = model.blocks[1].attn, {}
    attention.register_forward_hook(lambda layer, inputs, output: seen.update(x=inputs[0], y=output))
    options = dict(threshold=0.055, beta=0.2)
    with calibrated_attention(model, layers=[1], heads={1: [1]}, **options):
        model(image)
    q, k, v = attention.qkv(seen["x"]).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / 8**0.5).softmax(-1)
    weights = torch.stack([weights[:, 0], calibrate_sinks(weights, **options).weights[:, 1]], 1)
    torch.testing.assert_close(attention.proj((weights @ v).transpose(1, 2).flatten(2)), seen["y"])


class Attention(nn.Module):
    def forward(self, q, k, v, **options):
        return F.scaled_dot_product_attention(q, k, v, **options)


def test_heads_of_queries_share_those_of_keys_and_of_values():
    """``enable_gqa`` ended in a traceback."""
    q, k, v = torch.randn(2, 6, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 4)
    layer = Attention()
    with calibrated_attention(layer, beta=1):
        inside = layer(q, k, v, enable_gqa=True)
    torch.testing.assert_close(inside, layer(q, k, v, enable_gqa=True))


def test_calibrated_weights_are_dropped_out():
    """``dropout_p`` was passed over."""
    torch.manual_seed(0)
    q, k, eye = torch.randn(1, 2, 40, 8), torch.randn(1, 2, 50, 8), torch.eye(50).expand(1, 2, 50, 50)
    layer = Attention()
    with calibrated_attention(layer, threshold=0.03):
        weights, dropped = layer(q, k, eye), layer(q, k, eye, dropout_p=0.25)
    kept = dropped != 0
    assert 0.7 < kept.float().mean() < 0.8
    torch.testing.assert_close(dropped[kept], weights[kept] / 0.75)


def test_wrong_uses_are_told():
    with pytest.raises(VisionKitError, match="beta=2"), calibrated_attention(tiny_vit(), beta=2):
        pass
    with pytest.raises(VisionKitError, match="nothing to calibrate"), calibrated_attention(layer := nn.Linear(2, 2)):
        layer(torch.ones(1, 2))
