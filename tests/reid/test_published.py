import numpy as np
import pytest
import torch
from reid.released import released, released_source

from visionkit.backbones import ResNet
from visionkit.errors import VisionKitError
from visionkit.reid.networks import CoreReID, SourceReID
from visionkit.reid.published import checkpoint_filter_fn
from visionkit.reid.rebuild import rebuild


@pytest.fixture(scope="module")
def model():
    return CoreReID(ResNet(18), num_classes=5, preset="released")


def test_round_trip_and_what_is_dropped(model):
    unused = {"model.sa_upper.conv1.weight": torch.zeros(1), "model_ema.feat_bn.bias": torch.zeros(1)}
    unused["model_ema.ca_low.se.0.weight"] = torch.zeros(1)
    state = checkpoint_filter_fn({**released(model), **unused})
    own = model.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(state[key], own[key]) for key in own)


def test_data_parallel_prefixes(model):
    state = {"module." + key.replace("model.", "model.module.", 1): value for key, value in released(model).items()}
    assert checkpoint_filter_fn(state).keys() == model.state_dict().keys()


def test_own_state_dict_is_returned_as_it_is(model):
    assert checkpoint_filter_fn(model.state_dict()).keys() == model.state_dict().keys()


def test_keys_of_another_network(model):
    state = {**released(model), "model.fc.weight": torch.zeros(1)}
    with pytest.raises(VisionKitError, match="'model.fc.weight' is no key of the released networks"):
        checkpoint_filter_fn(state)


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


def test_a_released_source_is_a_model(tmp_path):
    source = SourceReID(ResNet(50), num_classes=3).eval()
    torch.save(dict(state_dict=released_source(source)), tmp_path / "model_best.pth.tar")
    again, _ = rebuild(tmp_path / "model_best.pth.tar")
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


@pytest.mark.parametrize(
    "gone, words", [("BN_u", "missing or of other shapes"), ("base.7.1.", r"\(2, 2, 2, 1\) blocks")]
)
def test_what_is_no_released_network(tmp_path, model, gone, words):
    file = tmp_path / "model_best.pth.tar"
    torch.save(dict(state_dict={key: value for key, value in released(model).items() if gone not in key}), file)
    with pytest.raises(VisionKitError, match=f"model_best.pth.tar: .*{words}"):
        rebuild(file)


def test_other_state_dicts_are_left_alone():
    state = {"layer1.0.conv1.weight": torch.zeros(1)}
    assert checkpoint_filter_fn(state) is state
