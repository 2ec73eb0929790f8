"""A training step, the schedule and the weights that are kept."""

import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS
from reid.camstyle.gradient_job import gradient_step, one_process_of_two

from visionkit.reid.camstyle.model import (
    CycleGAN,
    CycleGANOptimizers,
    generator_weights,
    linear_decay,
    load_generators,
)

SMALL = dict(generator=dict(ngf=2, num_blocks=1), discriminator=dict(ndf=2, num_layers=1), pool_size=2)


def test_a_step_trains_both_sides_and_reports_every_loss():
    torch.manual_seed(0)
    model = CycleGAN(**SMALL)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wrappers = CycleGANOptimizers(dict(optimizer=dict(type="Adam", lr=1e-2)))(model)
    data = dict(pair=dict(a=torch.rand(2, 3, 16, 8), b=torch.rand(2, 3, 16, 8)))
    log = model.train_step(data, wrappers)
    parts = ("generator_ab", "generator_ba", "discriminator_a", "discriminator_b")
    for part in parts:
        assert any(not torch.equal(before[key], value) for key, value in model.state_dict().items() if part in key)
    assert len(model.pool_a.images) == len(model.pool_b.images) == 2
    generators = [value for name, value in log.items() if name != "loss" and "discriminator" not in name]
    assert len(log) == 9 and log["loss"].item() == pytest.approx(sum(generators).item())
    assert not any(value.requires_grad for value in log.values())


@pytest.mark.parametrize("epochs, decay", [(30, 20), (2, 3), (1, 1), (3, 0), (0, 5)])
def test_schedule_is_constant_then_falls_towards_zero(epochs, decay):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2e-4)
    schedulers = [PARAM_SCHEDULERS.build(dict(each, optimizer=optimizer)) for each in linear_decay(epochs, decay)]
    rates = []
    for _ in range(epochs + decay):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    expected = [2e-4 * (1 - max(0, epoch - epochs) / (decay + 1)) for epoch in range(1, epochs + decay + 1)]
    assert rates == pytest.approx(expected, rel=1e-9)


def test_kept_weights_translate_as_the_model_does():
    model = CycleGAN(**SMALL).eval()
    generators = load_generators(generator_weights(model), SMALL["generator"])
    x = torch.rand(1, 3, 16, 8)
    for direction in ("ab", "ba"):
        assert torch.equal(generators[direction](x), model(image=x, direction=direction))


@pytest.mark.slow
def test_two_processes_take_the_step_of_one_with_both_images(tmp_path):
    a, b = torch.rand(2, 2, 3, 16, 8, dtype=torch.float64) * 2 - 1
    torch.multiprocessing.spawn(one_process_of_two, (str(tmp_path), a, b), nprocs=2)
    expected = gradient_step(a, b)
    for rank in range(2):
        reached = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert reached.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(reached[key], value, rtol=1e-8, atol=1e-12, msg=key)
