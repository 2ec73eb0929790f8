import pytest
import torch
from torch import nn

from visionkit.errors import VisionKitError
from visionkit.reid.fusion import ECAB, SECAB, EnsembleFusion, bottleneck_mlp, halves, pool

C = 32


def maps(seed=0, positive=False):
    x = torch.randn(3, C, 6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.relu() if positive else x


def linears(module):
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def apply_mlp(module, vectors):
    """The MLP by explicit products."""
    *first, last = linears(module)
    for layer in first:
        vectors = (vectors @ layer.weight.T).clamp(min=0)
    return vectors @ last.weight.T


def gate(module, feature_map):
    return torch.sigmoid(apply_mlp(module, feature_map.amax((2, 3))) + apply_mlp(module, feature_map.mean((2, 3))))


@pytest.mark.parametrize(
    "channels, widths",
    [(2048, [2048, 512, 128, 32, 128, 512, 2048]), (512, [512, 128, 32, 8, 32, 128, 512])],
)
def test_published_widths(channels, widths):
    layers = linears(ECAB(channels))
    assert [layers[0].in_features] + [layer.out_features for layer in layers] == widths
    assert all(layer.bias is None for layer in layers)
    if channels == 2048:
        assert sum(p.numel() for p in ECAB(channels).parameters()) == 2_236_416


def test_other_widths():
    assert [m.out_features for m in linears(bottleneck_mlp(64, reduction=16, hidden=1))] == [4, 64]
    assert [m.out_features for m in linears(bottleneck_mlp(8, hidden=5))] == [2, 1, 1, 1, 2, 8]
    with pytest.raises(VisionKitError, match="hidden=4"):
        bottleneck_mlp(64, hidden=4)


def test_ecab_and_secab_formulas():
    x = maps()
    secab, ecab = SECAB(C).double(), ECAB(C).double()
    torch.testing.assert_close(secab(pool(x)), gate(secab, x))
    torch.testing.assert_close(ecab(pool(x)), gate(ecab, x) * (x.amax((2, 3)) + x.mean((2, 3))))


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("secab", [True, False])
@pytest.mark.parametrize("ecab", [True, False, "released"])
def test_fusion_equals_weighted_maps(ecab, secab, positive):
    """Against the formula on whole weighted maps, also for maps with negative values."""
    student, teacher = maps(1, positive), maps(2, positive)
    fusion = EnsembleFusion(C, ecab=ecab, secab=secab).double().train()
    actual = fusion(student, teacher)

    weighted = teacher * gate(fusion.secab, teacher)[:, :, None, None] if secab else teacher
    expected = [weighted]
    for half, block in ((student[:, :, :3], fusion.ecab_top), (student[:, :, 3:], fusion.ecab_bottom)):
        most, mean = half.amax((2, 3)), half.mean((2, 3))
        weight = gate(block, half) if ecab is True else {False: 1.0, "released": most}[ecab]
        expected.append(weighted * (weight * (most + mean))[:, :, None, None])
    for value, each in zip(actual, expected):
        total = each.amax((2, 3)) + each.mean((2, 3))
        normed = (total - total.mean(0)) / (total.var(0, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(value, normed)


def test_not_local_gives_the_global_part_alone():
    fusion = EnsembleFusion(C, local=False).double()
    (theta,) = fusion(maps(1), maps(2))
    assert theta.shape == (3, C)
    assert not any("top" in name or "bottom" in name for name in fusion.state_dict())


def test_wrong_input():
    with pytest.raises(VisionKitError, match="ecab='relesed'"):
        EnsembleFusion(C, ecab="relesed")
    with pytest.raises(VisionKitError, match="1 high"):
        halves(torch.zeros(1, C, 1, 4))
