import pytest
import torch
from backbones.tiny_vit import tiny_vit
from torch import nn

from visionkit.backbones.adapters import PAdapter, add_p_adapters
from visionkit.errors import VisionKitError


def test_a_model_starts_as_it_was_and_trains_its_adapters_alone():
    image = torch.randn(2, 3, 16, 16)
    model = tiny_vit()
    before = model(image)
    line = add_p_adapters(model)
    # per layer 16 x 2 + 2 and 2 x 16 + 16 and theta; head 16 x 5 + 5
    trained = 3 * (34 + 48 + 1) + 85
    assert line.startswith(f"trains {trained} of ")
    torch.testing.assert_close(model(image), before)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(image).square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert model.blocks[0].attn.up.weight.grad.abs().sum() > 0


def test_the_adapter_reads_the_layers_own_weights():
    layer = tiny_vit().blocks[0].attn
    adapter, x = PAdapter(layer), torch.randn(2, 17, 16)
    q, k, _ = layer.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(adapter._weights(x), ((q @ k.mT) / 8**0.5).softmax(-1).mean(1))


def test_wrong_models_are_told():
    with pytest.raises(VisionKitError, match="no attention layers"):
        add_p_adapters(nn.Linear(2, 2))
    with pytest.raises(VisionKitError, match="head='fc'"):
        add_p_adapters(tiny_vit(), head="fc")
