import pytest
import torch
from reid.tiny import TINY

from visionkit.backbones import ResNet
from visionkit.errors import VisionKitError
from visionkit.reid.networks import CoreReID, SourceReID
from visionkit.reid.published import checkpoint_filter_fn


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
