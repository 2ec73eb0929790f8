from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from reid.tiny import TINY, views
from torch import nn

from visionkit.errors import VisionKitError
from visionkit.reid import CoreReID, MeanTeacherHook
from visionkit.reid.mean_teacher import ema_alpha, ema_limit, update_teacher
from visionkit.reid.stages import TargetFinetuning


def test_warm_up_rule():
    assert ema_alpha(0) == 0
    assert ema_alpha(1) == 0.5
    assert ema_alpha(9) == pytest.approx(0.9)
    assert ema_alpha(998) < 0.999
    assert ema_alpha(999) == ema_alpha(10**6) == 0.999


def test_memory_is_the_published_share_of_a_run():
    assert ema_limit(32_000) == ema_limit(10**6) == pytest.approx(0.999)
    assert 1 / (1 - ema_limit(3200)) == pytest.approx(100)
    assert ema_limit(1) == ema_limit(32) == 0


@pytest.mark.parametrize(
    "model, limit",
    [(dict(), 0.9), (dict(preset="released"), None), (dict(ema_limit=0.5), 0.5), (dict(local=False), 0.9)],
)
def test_stage_fits_the_memory_to_its_length(model, limit):
    stage = TargetFinetuning("target", 5, epochs=8, iters_per_epoch=40, model=model, identities=2, instances=2, lr=1e-3)
    given = stage.model_cfg(dict(backbone=dict(type="visionkit.ResNet", depth=18)), 5).get("ema_limit")
    assert given == (limit if limit is None else pytest.approx(limit))


def nets():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    student(torch.randn(5, 3, dtype=torch.float64))
    return teacher, student


@pytest.mark.parametrize("policy", ["own", "copy", "average"])
def test_update_formula(policy):
    teacher, student = nets()
    before = deepcopy(teacher)
    update_teacher(teacher, student, 0.75, policy)
    for new, old, other in zip(teacher.parameters(), before.parameters(), student.parameters()):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * other)
    for name, new in teacher.named_buffers():
        old, other = before.get_buffer(name), student.get_buffer(name)
        counts = not new.is_floating_point()
        expected = {"own": old, "copy": other, "average": other if counts else 0.75 * old + 0.25 * other}[policy]
        torch.testing.assert_close(new, expected)


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize("wrapped", [False, True])
def test_hook_moves_the_teacher_and_counts(wrapped):
    from mmengine.registry import MODEL_WRAPPERS

    MODEL_WRAPPERS.register_module(module=Wrapper, force=True)
    model = CoreReID(TINY, num_classes=4)
    runner = SimpleNamespace(model=Wrapper(model) if wrapped else model)
    hook = MeanTeacherHook()
    hook.before_train(runner)
    weights = []
    for step in range(3):
        with torch.no_grad():
            model.student.backbone.conv.weight.fill_(float(step))
        hook.after_train_iter(runner, step)
        weights.append(model.teacher.backbone.conv.weight.mean().item())
    # alpha is 0, 1/2, 2/3: the average of all students so far
    assert weights == pytest.approx([0.0, 0.5, 1.0])
    assert model.ema_step == 3


def test_resume_is_exact():
    model = CoreReID(TINY, num_classes=4)
    for _ in range(5):
        model.update_teacher()
    other = CoreReID(TINY, num_classes=4)
    other.load_state_dict(model.state_dict())
    for each in (model, other):
        with torch.no_grad():
            each.student.backbone.conv.weight.fill_(7.0)
        each.update_teacher()
    assert torch.equal(model.teacher.backbone.conv.weight, other.teacher.backbone.conv.weight)


def test_hook_refuses_a_model_without_teacher():
    with pytest.raises(VisionKitError, match="Linear has no update_teacher"):
        MeanTeacherHook().before_train(SimpleNamespace(model=nn.Linear(2, 2)))


@pytest.mark.parametrize("policy", ["own", "copy", "average"])
def test_who_owns_the_statistics_in_training(policy):
    model = CoreReID(TINY, num_classes=4, ema_buffers=policy).train()
    before = model.teacher.backbone.norm.running_mean.clone()
    model(**views())
    moved = not torch.equal(before, model.teacher.backbone.norm.running_mean)
    assert moved == (policy == "own")
