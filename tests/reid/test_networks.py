import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import OptimWrapper
from reid.tiny import TINY, TinyBackbone, batch, views

from visionkit.errors import VisionKitError
from visionkit.registry import MODELS
from visionkit.reid.encoder import build_backbone
from visionkit.reid.losses import softmax_triplet_loss
from visionkit.reid.networks import CoreReID, SourceReID

SWITCHES = [
    dict(),
    dict(preset="released"),
    dict(ecab=False),
    dict(ecab="released"),
    dict(secab=False),
    dict(bmfn=False),
    dict(losses=dict(fusion=0)),
    dict(local=False),
    dict(mean_teacher=False),
    dict(local=False, mean_teacher=False, bmfn=False, ecab=False),
    dict(bn_group_size=4),
    dict(backbone=dict(TINY, as_tuple=True)),
]


def core(**options):
    torch.manual_seed(0)
    return CoreReID(**dict(dict(backbone=TINY, num_classes=6), **options))


def a_step(model, data):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    return model.train_step(data, OptimWrapper(optimizer))


@pytest.mark.parametrize("options", SWITCHES, ids=str)
def test_every_switch_trains_predicts_and_clusters(options):
    model = core(**options).train()
    parts = 1 if options.get("local") is False else 3
    data = views() if parts == 3 else dict(global_view=batch())
    log = a_step(model, data)
    model.update_teacher()
    assert log["loss"].isfinite()
    fused = model.extract_fused(batch()["image"])
    descriptor = model.val_step(dict(batch(), role=torch.zeros(8)))
    assert [tuple(each.shape) for each in fused] == [(8, 16)] * parts
    assert descriptor.shape == (8, 16 * parts)
    for each in (*fused, descriptor):
        torch.testing.assert_close(each.norm(dim=1), torch.ones(8))
    assert model.training and not descriptor.requires_grad


def test_default_losses_are_the_formula():
    model = core().double().train()
    data = {name: dict(view, image=view["image"].double()) for name, view in views().items()}
    losses = model(**data)
    model = core().double().train()
    expected = {}
    for i, (part, view) in enumerate(zip(("global", "top", "bottom"), data.values())):
        student, teacher = model.student(view["image"]), model.teacher(view["image"])
        x = student.feature_map
        if i == 0:
            g = model.student.bn_global(x.mean((2, 3)) + x.amax((2, 3)))
            logits = g @ model.student.classifier.weight.T
            expected["loss_id"] = F.cross_entropy(logits, view["pid"], label_smoothing=0.1)
            expected["loss_triplet"] = softmax_triplet_loss(g, view["pid"])
        else:
            half = x[:, :, :2] if i == 1 else x[:, :, 2:]
            branch = model.student.local_top if i == 1 else model.student.local_bottom
            local = branch.bn(branch.fc(torch.cat([half.mean((2, 3)), half.amax((2, 3))], 1)))
            expected[f"loss_triplet_{part}"] = 0.5 * softmax_triplet_loss(local, view["pid"])
        theta = model.fusion(x, teacher.feature_map)[i]
        expected[f"loss_fusion_{part}"] = 0.5 / 3 * softmax_triplet_loss(theta, view["pid"])
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name])


def test_gradient_reaches_the_fusion_by_default_alone():
    for options, reached in ((dict(), True), (dict(preset="released"), False)):
        model = core(backbone=dict(TINY, channels=512), **options).train()
        sum(model(**views()).values()).backward()
        for name, parameter in model.fusion.named_parameters():
            if name.endswith("bias"):
                assert not parameter.requires_grad and (parameter == 0).all()
            else:
                assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == reached, name
        assert all(p.grad is None for p in model.teacher.parameters())
        trainable = {n: p for n, p in model.student.named_parameters() if p.requires_grad}
        assert all(p.grad is not None for p in trainable.values())


def test_released_fusion_statistics_still_adapt():
    model = core(preset="released").train()
    model(**views())
    assert model.fusion.secab is None
    for norm in (model.fusion.bn_global, model.fusion.bn_top, model.fusion.bn_bottom):
        assert norm.num_batches_tracked == 3 and norm.running_mean.abs().sum() > 0


def test_neck_biases_are_frozen():
    model = core()
    for name, parameter in model.student.named_parameters():
        if name.startswith("bn_global") or ".bn." in name:
            assert parameter.requires_grad == name.endswith("weight")
    assert not SourceReID(TINY, 3).bn.bias.requires_grad


@pytest.mark.parametrize("options", [dict(), dict(bmfn=False)])
def test_bmfn_is_sum_then_normalise(options):
    model = core(**options).double().eval()
    image = batch()["image"].double()
    with torch.no_grad():
        one, other = ([*model.fused(x), model.descriptor(x)] for x in (image, image.flip(3)))
    actual = [*model.extract_fused(image), model.extract(image)]
    for value, a, b in zip(actual, one, other):
        torch.testing.assert_close(value, F.normalize(a + b if model.bmfn else a))
    mirrored = torch.allclose(model.extract(image), model.extract(image.flip(3)))
    assert mirrored == model.bmfn


def test_prediction_is_the_teachers():
    model = core()
    image = batch()["image"]
    with torch.no_grad():
        before = model.extract(image)
        model.student.backbone.conv.weight.normal_()
    assert torch.equal(before, model.extract(image))
    with torch.no_grad():
        model.teacher.backbone.conv.weight.normal_()
    assert not torch.allclose(before, model.extract(image))


def test_extraction_leaves_statistics_and_mode_alone():
    model = core().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.extract(batch()["image"])
    model.extract_fused(batch()["image"])
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_norm_groups_see_their_own_statistics():
    model = core(bn_group_size=4)
    image = batch()["image"]
    whole = model.train().student(image)
    parts = core().train()
    first, second = parts.student(image[:4]), parts.student(image[4:])
    torch.testing.assert_close(whole.feature_map, torch.cat([first.feature_map, second.feature_map]))
    torch.testing.assert_close(whole.logits, torch.cat([first.logits, second.logits]))
    torch.testing.assert_close(model.student.bn_global.running_mean, parts.student.bn_global.running_mean)
    model.eval()
    torch.testing.assert_close(model.student(image[:5]).logits, model.student(image).logits[:5])


def test_reset_classifier():
    model = core()
    centroids = torch.randn(4, 16)
    model.reset_classifier(4, centroids.numpy())
    for net in (model.student, model.teacher):
        torch.testing.assert_close(net.classifier.weight[:4].data, F.normalize(centroids))
    assert model.student(batch()["image"]).logits.shape == (8, 4)
    model.reset_classifier(6)
    assert model.student.classifier.weight.abs().max() < 0.01
    with pytest.raises(VisionKitError, match="no room for 7 clusters"):
        model.reset_classifier(7)
    with pytest.raises(VisionKitError, match="centroids of shape"):
        model.reset_classifier(5, centroids)


def test_load_source_copies_the_backbone_and_reports_the_rest():
    torch.manual_seed(1)
    source, model = SourceReID(TINY, num_classes=9), core()
    source.train()(source=batch())
    left = model.load_source(source.state_dict())
    assert "classifier.weight" in left and "bn.weight" in left and not any("backbone" in key for key in left)
    for net in (model.student, model.teacher):
        for key, value in source.backbone.state_dict().items():
            assert torch.equal(value, net.backbone.state_dict()[key])
    assert torch.equal(model.student.local_top.fc.weight, model.teacher.local_top.fc.weight)


def test_load_source_of_another_architecture():
    other = SourceReID(dict(TINY, channels=8), num_classes=9).state_dict()
    with pytest.raises(
        VisionKitError, match=r"expected backbone.conv.weight to be \(16, 3, 4, 4\), found \(8, 3, 4, 4\)"
    ):
        core().load_source(other)
    more = dict(SourceReID(TINY, num_classes=9).state_dict(), **{"backbone.extra.weight": torch.zeros(2)})
    with pytest.raises(VisionKitError, match=r"expected backbone.extra.weight to be nothing, found \(2,\)"):
        core().load_source(more)
    with pytest.raises(VisionKitError, match="found nothing"):
        core().load_source({"head.weight": torch.zeros(2)})


@pytest.mark.parametrize("teacher", [True, False])
def test_either_stage_starts_from_either(teacher):
    torch.manual_seed(1)
    adapted = core() if teacher else core(mean_teacher=False)
    net = adapted.teacher if teacher else adapted.student
    for parameter in net.parameters():
        parameter.data.normal_()
    onward, source, fewer = core(), SourceReID(TINY, num_classes=9), SourceReID(TINY, num_classes=3)
    onward.load_source(adapted.state_dict())
    source.load_source(adapted.state_dict())
    for other in (onward.student, onward.teacher, source):
        for key, value in net.backbone.state_dict().items():
            assert torch.equal(value, other.backbone.state_dict()[key])
    before = fewer.classifier.weight.clone()
    source.bn.weight.data.normal_()
    fewer.load_source(source.state_dict())
    assert torch.equal(fewer.bn.weight, source.bn.weight) and torch.equal(fewer.classifier.weight, before)
    with pytest.raises(VisionKitError, match="of another architecture"):
        SourceReID(dict(TINY, channels=8), num_classes=9).load_source(source.state_dict())


def test_source_losses_and_target_statistics():
    torch.manual_seed(0)
    model = SourceReID(TINY, num_classes=4).train()
    losses = model(source=batch())
    torch.manual_seed(0)
    again = SourceReID(TINY, num_classes=4).train()
    feature = again.backbone(batch()["image"]).mean((2, 3))
    logits = again.bn(feature) @ again.classifier.weight.T
    torch.testing.assert_close(losses["loss_id"], F.cross_entropy(logits, batch()["pid"], label_smoothing=0.1))
    torch.testing.assert_close(losses["loss_triplet"], softmax_triplet_loss(feature, batch()["pid"]))
    before = model.bn.running_mean.clone()
    model(source=batch(), target=batch(5))
    assert model.bn.num_batches_tracked == 3
    assert not torch.equal(before, model.bn.running_mean)
    assert model.val_step(batch()).shape == (8, 16)
    assert a_step(model, dict(source=batch(), target=batch(5)))["loss"].isfinite()


def test_built_from_configs_with_any_backbone():
    backbone = dict(type="visionkit.TimmFeatures", model_name="resnet10t")
    model = MODELS.build(dict(type="visionkit.SourceReID", backbone=backbone, num_classes=4))
    assert model.extract(torch.randn(2, 3, 64, 32)).shape == (2, 512)
    assert core(backbone=TinyBackbone()).student.num_features == 16


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(preset="relased"), "model: preset='relased'; expected 'default' or 'released'"),
        (dict(losses=dict(tripelt=1)), "losses: unknown key 'tripelt'; did you mean 'triplet'"),
        (dict(ema_buffers="mine"), "ema_buffers='mine'"),
        (dict(backbone=torch.nn.Conv2d(3, 4, 1)), "Conv2d does not tell num_features"),
        (dict(ema_limit=2), "ema_limit=2; expected a number from 0 to 1"),
        (dict(ema_limit="x"), "ema_limit='x'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(VisionKitError, match=message):
        core(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(losses=dict(id="x")), "losses: id='x'; expected a number of at least 0"),
        (dict(losses=dict(triplet=-1)), "losses: triplet=-1"),
        (dict(label_smoothing=1.5), "label_smoothing=1.5; expected a number from 0 to 1"),
        (dict(label_smoothing=-1), "label_smoothing=-1"),
        (dict(bn_group_size=0), "bn_group_size=0; expected a whole number of at least 2"),
        (dict(bn_group_size=1), "bn_group_size=1; expected a whole number of at least 2"),
        (dict(bn_group_size="x"), "bn_group_size='x'"),
    ],
)
def test_numbers_that_neither_network_can_train_with(options, message):
    for network in (SourceReID, CoreReID):
        with pytest.raises(VisionKitError, match=message):
            network(TINY, 2, **options)


def test_wrong_batches():
    model = core()
    with pytest.raises(VisionKitError, match="no loader is called 'bottom'"):
        model(global_view=batch(), top=batch())
    with pytest.raises(VisionKitError, match="mode='tensor'; expected 'loss' or 'predict'"):
        model(mode="tensor")
    with pytest.raises(VisionKitError, match="label 3 is outside the classifier's 2 classes"):
        SourceReID(TINY, 2)(source=batch())
    with pytest.raises(VisionKitError, match="1 high"):
        model.extract(torch.zeros(2, 3, 4, 8))


def test_seeds_repeat_bit_for_bit():
    runs = []
    for _ in range(2):
        model = core().train()
        for step in range(2):
            a_step(model, views(step))
            model.update_teacher()
        runs.append(model.state_dict())
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def test_channels_last_only_where_it_is_safe():
    wide, narrow = (build_backbone(dict(type="visionkit.TinyBackbone", channels=channels)) for channels in (16, 12))
    assert wide.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert not narrow.conv.weight.is_contiguous(memory_format=torch.channels_last)
