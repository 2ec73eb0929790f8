import warnings

import pytest
import torch
from safetensors.torch import save_file

from visionkit.backbones import ResNet, TimmFeatures, resnet
from visionkit.backbones.resnet import InstanceBatchNorm
from visionkit.errors import VisionKitError
from visionkit.registry import MODELS


@pytest.mark.parametrize("depth, channels", [(18, 512), (34, 512), (50, 2048), (101, 2048), (152, 2048)])
@pytest.mark.parametrize("ibn", [False, "a"])
def test_depths_on_meta(depth, channels, ibn):
    with torch.device("meta"):
        net = ResNet(depth, ibn=ibn)
        assert net(torch.zeros(1, 3, 64, 32)).shape == (1, channels, 4, 2)
    assert net.num_features == channels
    found = [name for name, module in net.named_modules() if isinstance(module, InstanceBatchNorm)]
    assert len(found) == (sum(len(layer) for layer in (net.layer1, net.layer2, net.layer3)) if ibn else 0)
    assert all(name.endswith("bn1") for name in found)


def test_last_stride_and_parity_with_torchvision():
    import torchvision

    torch.manual_seed(0)
    reference = torchvision.models.resnet18().eval()
    net = ResNet(18, last_stride=2).eval()
    net.load_weights(reference.state_dict(), "torchvision")
    image = torch.randn(1, 3, 64, 32)
    pooled = net(image).mean((2, 3))
    torch.testing.assert_close(reference.fc(pooled), reference(image))
    near = ResNet(18).eval()
    near.load_state_dict(net.state_dict())  # a stride has no weights
    assert near(image).shape == (1, 512, 4, 2)


def test_instance_batch_norm_halves():
    x = torch.randn(4, 6, 5, 5) * 3 + 1
    y = InstanceBatchNorm(6)(x)
    torch.testing.assert_close(y[:, :3].mean((2, 3)), torch.zeros(4, 3), atol=1e-5, rtol=0)
    assert y[:, 3:].mean((2, 3)).abs().max() > 1e-2
    torch.testing.assert_close(y[:, 3:].mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("ibn", [False, "a"])
def test_weights_from_a_file(tmp_path, suffix, ibn):
    state = ResNet(18, ibn=ibn).state_dict()
    if ibn:  # as IBN-Net names them
        state = {k.replace(".instance.", ".IN.").replace(".batch.", ".BN."): v for k, v in state.items()}
    state["fc.weight"] = torch.zeros(1000, 512)
    path = tmp_path / f"weights.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save({"state_dict": state}, path)
    net = ResNet(18, ibn=ibn, weights=str(path))
    assert torch.equal(net.conv1.weight, state["conv1.weight"])
    assert torch.equal(net.layer3[1].conv2.weight, state["layer3.1.conv2.weight"])


def test_weights_of_another_architecture(tmp_path):
    path = tmp_path / "resnet34.pth"
    torch.save(ResNet(34).state_dict(), path)
    with pytest.raises(VisionKitError, match=r"resnet34.pth: not the weights of a resnet18: .* have no place"):
        ResNet(18, weights=path)
    with pytest.raises(VisionKitError, match=r"not the weights of a resnet50: expected \S+ of shape .*, found"):
        ResNet(50, weights=path)
    with pytest.raises(VisionKitError, match="not the weights of a resnet34_ibn_a"):
        ResNet(34, ibn="a", weights=path)


def test_weights_file_that_cannot_be_read(tmp_path):
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    for path in (broken, tmp_path / "absent.pth"):
        with pytest.raises(VisionKitError, match=path.name):
            ResNet(18, weights=path)


@pytest.mark.parametrize("error", [OSError("no network"), RuntimeError("invalid hash value")])
def test_imagenet_out_of_reach_is_one_warning(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ResNet(18, weights="imagenet")
        ResNet(18, ibn="a", weights="imagenet")
    messages = [str(each.message) for each in caught]
    assert len(messages) == 2 and all("training from scratch" in message for message in messages)
    assert str(error) in messages[0]


def test_imagenet_weights_that_nobody_published():
    with pytest.warns(UserWarning, match="none are published for IBN-a of depth 152"):
        ResNet(152, ibn="a", weights="imagenet")


def test_imagenet_weights_are_used(monkeypatch):
    state = dict(ResNet(18).state_dict(), **{"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)})
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: state)
    assert torch.equal(ResNet(18, weights="imagenet").conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize(
    "options, message",
    [(dict(depth=20), "depth=20"), (dict(ibn="b"), "ibn='b'"), (dict(last_stride=3), "last_stride=3")],
)
def test_wrong_options(options, message):
    with pytest.raises(VisionKitError, match=message):
        ResNet(**options)


def test_timm_features():
    net = MODELS.build(dict(type="visionkit.TimmFeatures", model_name="resnet10t", out_index=-2))
    assert net(torch.zeros(1, 3, 64, 32)).shape == (1, net.num_features, 4, 2)
    assert net.num_features == 256


def test_timm_channels_last_maps_are_turned():
    net = TimmFeatures("swin_tiny_patch4_window7_224", img_size=(64, 32), window_size=2, depths=(1, 1, 1, 1))
    assert net(torch.zeros(1, 3, 64, 32)).shape == (1, net.num_features, 2, 1)


def test_timm_pretrained_out_of_reach(monkeypatch):
    import timm

    create = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no network")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(resnet, "_answers", lambda url: False)
    with pytest.warns(UserWarning, match=r"resnet10t: .* \(no network\); training from scratch"):
        TimmFeatures("resnet10t", pretrained=True)


class Evil:
    def __reduce__(self):
        return exec, ("raise AssertionError('the file was run')",)


def test_timm_weights_of_a_file(tmp_path):
    import timm

    file = dict(file=str(tmp_path / "net.pth"))
    model = timm.create_model("resnet10t")
    torch.save(model.state_dict(), file["file"])
    net = TimmFeatures("resnet10t", pretrained=True, pretrained_cfg_overlay=file)
    assert torch.equal(net.body.layer1[0].conv1.weight, model.layer1[0].conv1.weight)
    torch.save(dict(state_dict=Evil()), file["file"])
    with pytest.raises(VisionKitError, match="net.pth: refused, it would run '.*exec'"):
        TimmFeatures("resnet10t", pretrained=True, pretrained_cfg_overlay=file)
    with pytest.raises(VisionKitError, match="checkpoint_path is not read; give .*pretrained_cfg_overlay"):
        TimmFeatures("resnet10t", checkpoint_path=file["file"])


def test_timm_model_that_does_not_exist():
    with pytest.raises(VisionKitError, match="nearest: resnet50"):
        TimmFeatures("resnet50x_")
    with pytest.raises(VisionKitError, match="features_only and out_index=9"):
        TimmFeatures("resnet10t", out_index=9)
