import pytest
import torch
from torch import nn

from visionkit.backbones import MMBackbone
from visionkit.errors import VisionKitError
from visionkit.registry import MODELS

THIN = dict(dims=(32, 32, 64, 64), num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 1))


def build(name="MAViT", **options):
    return MODELS.build(dict(type=f"visionkit.{name}", arch="tiny", **THIN, **options))


@pytest.mark.parametrize("name", ["MAViT", "NaLaFormer", "SOFT", "SOFTNorm"])
def test_gives_a_tuple_of_the_chosen_maps(name):
    net = build(name, out_indices=(1, 3))
    assert isinstance(net, MMBackbone) and net.channels == [32, 64]
    maps = net(torch.randn(1, 3, 64, 96))
    assert isinstance(maps, tuple) and [tuple(each.shape[1:]) for each in maps] == [(32, 8, 12), (64, 2, 3)]
    sum(each.sum() for each in maps).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_frozen_stages_and_norm_eval():
    net = build(frozen_stages=1, norm_eval=True, out_norms=True)
    body = net.train().body
    assert not any(p.requires_grad for part in (body.stem, body.stages[0]) for p in part.parameters())
    assert all(p.requires_grad for p in body.stages[1].parameters())
    assert not any(module.training for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    assert body.stages[1].training and not body.stages[0].training
    maps = net(torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(maps[0].mean(dim=1), torch.zeros(1, 16, 16), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(arch="micro"), "arch='micro': expected one of base, large, small, tiny"),
        (dict(out_indices=(0, 4)), "out_indices: 4 is not a stage"),
        (dict(frozen_stages=7), "frozen_stages=7"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(VisionKitError, match=message):
        MMBackbone.__subclasses__()[0](**dict(THIN, **options))
