import pytest
import torch
from backbones.tiny_vit import FEW
from torch import nn

from visionkit.errors import VisionKitError
from visionkit.nvs.attention import set_self_attention
from visionkit.nvs.decoder import Decoder
from visionkit.nvs.model import NViST
from visionkit.ops import attention_names

TINY = dict(img_size=(20, 10), encoder_embed_dim=16, encoder_depth=1, encoder_num_heads=2, decoder_embed_dim=16)
TINY |= dict(decoder_depth=2, decoder_num_heads=2, resolution=6, lpips_weight=0)


def decoder():
    torch.manual_seed(0)
    options = dict(embed_dim=16, depth=2, num_heads=2, output_dim=4, resolution=6, patch_size=3)
    return Decoder(16, 9, **options).eval()


def grids(model):
    r = torch.Generator().manual_seed(0)
    return model(torch.randn(2, 10, 16, generator=r), torch.rand(2, 2, generator=r))


@pytest.mark.parametrize("attention", [name for name in attention_names() if name != "softmax"])
def test_another_attention_in_the_decoder(attention):
    plain = grids(decoder())
    model = set_self_attention(decoder(), attention, **FEW.get(attention, {}))
    planes, vectors = grids(model)
    assert planes.shape == plain[0].shape and vectors.shape == plain[1].shape
    assert planes.isfinite().all() and not torch.allclose(planes, plain[0])
    (planes.sum() + vectors.sum()).backward()
    unread = {"aaren": {"q.weight", "q.bias"}, "gaam": {"q.weight", "q.bias"}, "gaussian": {"k.weight", "k.bias"}}
    without = {name for name, p in model.blocks[1].attn.named_parameters() if p.grad is None}
    assert without <= unread.get(attention, set())


def test_a_config_names_the_decoders_attention():
    names = lambda model: [block.attn.core.name for block in model.decoder.blocks]
    assert names(NViST(**TINY, attention="linear")) == ["softmax", "linear"]  # the first block cross-attends
    model = NViST(**TINY, encoder_attention="linear")
    assert model.encoder.blocks[0].attn.core.name == "linear" and names(model) == ["softmax", "softmax"]
    assert model.encoder(torch.rand(1, 3, 20, 10)).isfinite().all()
    with pytest.raises(VisionKitError, match="no such attention"):
        NViST(**TINY, attention="liner")


def test_softmax_by_name_changes_nothing():
    torch.testing.assert_close(grids(set_self_attention(decoder(), "softmax")), grids(decoder()))


def test_wrong_models_are_told():
    with pytest.raises(VisionKitError, match="no self-attending blocks"):
        set_self_attention(nn.Linear(2, 2), "linear")
