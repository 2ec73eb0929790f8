import numpy as np
import pytest
import torch
from reid.tiny import TINY

from visionkit.backbones import ResNet
from visionkit.errors import VisionKitError
from visionkit.reid.networks import CoreReID, SourceReID
from visionkit.reid.published import checkpoint_filter_fn, released_network
from visionkit.reid.rebuild import rebuild


def released(model):
    """A released state dict of the model, by renaming ours back."""
    state = {}
    names = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    heads = {
        "bn_global.": "BN_g.",
        "local_top.bn.": "BN_u.",
        "local_bottom.bn.": "BN_l.",
        "local_top.fc.": "adativeFC_upper.",
        "local_bottom.fc.": "adativeFC_low.",
        "classifier.": "classifier.",
    }
    fusions = {"ecab_top.mlp": "model.ca_upper.se", "ecab_bottom.mlp": "model.ca_low.se"}
    fusions |= {"bn_global": "fuse_net.bn_1", "bn_top": "fuse_net.bn_2", "bn_bottom": "fuse_net.bn_3"}
    for ours, theirs in (("student", "model"), ("teacher", "model_ema")):
        for key, value in getattr(model, ours).state_dict().items():
            if key.startswith("backbone."):
                _, child, rest = key.split(".", 2)
                state[f"{theirs}.base.{names[child]}.{rest}"] = value
            else:
                head = next(head for head in heads if key.startswith(head))
                state[f"{theirs}.{heads[head]}{key.removeprefix(head)}"] = value
    for key, value in model.fusion.state_dict().items():
        head = next(head for head in fusions if key.startswith(head))
        state[fusions[head] + key.removeprefix(head)] = value[:, :, None, None] if "mlp" in key else value
    return state


@pytest.fixture(scope="module")
def model():
    return CoreReID(ResNet(18), num_classes=5, preset="released")


def test_round_trip_and_what_is_dropped(model):
    unused = {"model.sa_upper.conv1.weight": torch.zeros(1), "model_ema.feat_bn.bias": torch.zeros(1)}
    unused["model_ema.ca_low.se.0.weight"] = torch.zeros(1)
    state = checkpoint_filter_fn({**released(model), **unused}, model)
    own = model.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(state[key], own[key]) for key in own)


def test_data_parallel_prefixes(model):
    state = {"module." + key.replace("model.", "model.module.", 1): value for key, value in released(model).items()}
    assert checkpoint_filter_fn(state, model).keys() == model.state_dict().keys()


def test_own_state_dict_is_returned_as_it_is(model):
    assert checkpoint_filter_fn(model.state_dict(), model).keys() == model.state_dict().keys()


def test_keys_of_another_network(model):
    with pytest.raises(VisionKitError, match="'model.fc.weight' is no key of a released CoreReID"):
        checkpoint_filter_fn({"model.fc.weight": torch.zeros(1)}, model)
    with pytest.raises(VisionKitError, match="no key of a released SourceReID"):
        checkpoint_filter_fn(released(model), SourceReID(TINY, 3))
    with pytest.raises(VisionKitError, match="got Linear"):
        checkpoint_filter_fn({"base.0.weight": torch.zeros(1)}, torch.nn.Linear(2, 2))


def released_source(model):
    """A released state dict of stage 1, of a ResNet-50."""
    names = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    state = {f"feat_bn.{key}": value for key, value in model.bn.state_dict().items()}
    for key, value in model.backbone.state_dict().items():
        child, rest = key.split(".", 1)
        state[f"module.base.{names[child]}.{rest}"] = value
    return {**state, "module.classifier.weight": model.classifier.weight.detach()}


def test_a_released_file_is_a_model(tmp_path, model):
    saved = dict(state_dict=released(model.eval()), epoch=3, best_mAP=np.float64(0.8))  # as the released code saves it
    torch.save(saved, tmp_path / "model_best.pth.tar")
    with torch.no_grad():  # ResNet-18 keeps its last stride there
        for encoder in (model.student, model.teacher):
            for conv in (encoder.backbone.layer4[0].conv1, encoder.backbone.layer4[0].downsample[0]):
                conv.stride = (2, 2)
    again, image_size = rebuild(tmp_path / "model_best.pth.tar")
    assert image_size == (256, 128) and not again.training
    image = torch.randn(2, 3, 64, 32)
    torch.testing.assert_close(again.extract(image), model.extract(image))


def test_a_released_source_is_a_model():
    source = SourceReID(ResNet(50), num_classes=3).eval()
    again = released_network(released_source(source)).eval()
    image = torch.randn(1, 3, 64, 32)
    torch.testing.assert_close(again.extract(image), source.extract(image))


def test_training_starts_from_released_files(model):
    source = SourceReID(ResNet(50), num_classes=3)
    onward = CoreReID(ResNet(50), num_classes=4)
    assert set(onward.load_source(released_source(source))) == {
        "classifier.weight",
        *(f"bn.{key}" for key in source.bn.state_dict()),
    }
    assert torch.equal(onward.teacher.backbone.conv1.weight, source.backbone.conv1.weight)
    again = SourceReID(ResNet(18, last_stride=2), num_classes=5)
    again.load_source(released(model))
    assert torch.equal(again.backbone.layer4[1].conv2.weight, model.teacher.backbone.layer4[1].conv2.weight)


def test_what_is_no_released_network(model):
    assert released_network({"layer1.0.conv1.weight": torch.zeros(1)}) is None
    state = released(model)
    with pytest.raises(VisionKitError, match="missing or of other shapes"):
        released_network({key: value for key, value in state.items() if "BN_u" not in key})
    with pytest.raises(VisionKitError, match=r"\(2, 2, 2, 1\) blocks"):
        released_network({key: value for key, value in state.items() if "base.7.1." not in key})
