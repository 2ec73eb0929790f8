"""The losses against their formulas, and where their gradients go."""

import pytest
import torch

from visionkit.reid.camstyle.losses import cycle_loss, discriminator_loss, identity_loss, lsgan_loss
from visionkit.reid.camstyle.model import CycleGAN

SMALL = dict(generator=dict(ngf=2, num_blocks=1, dropout=0.0), discriminator=dict(ndf=2, num_layers=1))


def test_losses_equal_their_formulas():
    p, q = torch.tensor([[0.5, 2.0]], dtype=torch.float64), torch.tensor([[-1.0, 0.25]], dtype=torch.float64)
    assert lsgan_loss(p, True).item() == pytest.approx((0.25 + 1.0) / 2, abs=1e-15)
    assert lsgan_loss(p, False).item() == pytest.approx((0.25 + 4.0) / 2, abs=1e-15)
    assert discriminator_loss(p, q).item() == pytest.approx(0.5 * (0.625 + (1.0 + 0.0625) / 2), abs=1e-15)
    assert cycle_loss(p, q).item() == pytest.approx(10 * (1.5 + 1.75) / 2, abs=1e-14)
    assert identity_loss(p, q).item() == pytest.approx(0.5 * 10 * (1.5 + 1.75) / 2, abs=1e-14)
    assert identity_loss(p, q, 4.0, 0.25).item() == pytest.approx(0.25 * 4 * (1.5 + 1.75) / 2, abs=1e-14)


def test_the_generators_losses_by_hand():
    model = CycleGAN(**SMALL).double()
    a, b = torch.rand(2, 2, 3, 16, 8, dtype=torch.float64) * 2 - 1
    losses, fake = model.generator_losses(dict(a=a, b=b))
    ab, ba = model.generator_ab, model.generator_ba
    assert torch.equal(fake["b"], ab(a)) and torch.equal(fake["a"], ba(b))
    expected = dict(
        adversarial_a=((model.discriminator_a(ba(b)) - 1) ** 2).mean(),
        adversarial_b=((model.discriminator_b(ab(a)) - 1) ** 2).mean(),
        cycle_a=10 * (ba(ab(a)) - a).abs().mean(),
        cycle_b=10 * (ab(ba(b)) - b).abs().mean(),
        identity_a=5 * (ba(a) - a).abs().mean(),
        identity_b=5 * (ab(b) - b).abs().mean(),
    )
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), abs=1e-12), name


def test_each_side_learns_from_its_own_losses_alone():
    model = CycleGAN(**SMALL)
    a, b = torch.rand(2, 1, 3, 16, 8) * 2 - 1
    losses, fake = model.generator_losses(dict(a=a, b=b))
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.generator_ab.parameters())
    assert all(p.grad is None for p in model.discriminator_a.parameters())
    assert all(p.requires_grad for p in model.discriminator_a.parameters())
    model.zero_grad()
    shown = {side: image.detach() for side, image in fake.items()}
    sum(model.discriminator_losses(dict(a=a, b=b), shown).values()).backward()
    assert all(p.grad is None for p in model.generator_ab.parameters())
    assert all(p.grad is not None for p in model.discriminator_b.parameters())


def test_the_identity_loss_can_be_left_out():
    images = dict(a=torch.rand(1, 3, 16, 8), b=torch.rand(1, 3, 16, 8))
    losses, _ = CycleGAN(**SMALL, identity_weight=0).generator_losses(images)
    assert not any(name.startswith("identity") for name in losses)
