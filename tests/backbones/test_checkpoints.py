"""Published files: made up here under their own names, from the shapes of the reference cases."""

import argparse
import json
from pathlib import Path

import pytest
import timm
import torch
from reference.common import fill_state_dict
from safetensors.torch import load_file

import visionkit.backbones  # noqa: F401
from visionkit.backbones import soft
from visionkit.backbones.published import unwrap
from visionkit.cli import main
from visionkit.errors import VisionKitError
from visionkit.registry import MODELS

CASES = Path(__file__).parents[1] / "reference" / "cases"
IMAGE = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)


@pytest.fixture(scope="module", params=["mavit_tiny", "nalaformer_tiny", "soft_tiny"])
def published(request):
    shapes = json.loads((CASES / f"{request.param}.json").read_text())["state_dict"]
    return request.param, fill_state_dict(shapes)


def load(name, path, **options):
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **options).eval()


def test_wrappers_conversion_and_other_heads(published, tmp_path, capsys):
    name, state = published
    outputs, zeros = [], {key: torch.zeros_like(value) for key, value in state.items()}
    for content in ({"model": state}, {"state_dict": zeros, "state_dict_ema": state}):
        torch.save(content, tmp_path / "published.pth")
        outputs.append(load(name, tmp_path / "published.pth")(IMAGE))
    for content in (state, {"state_dict": state}, {"model": zeros, "model_ema": state}):
        assert all(value is state[key] for key, value in unwrap(content).items())
    converted = tmp_path / "out" / "ours.safetensors"
    assert main(["convert", name, str(tmp_path / "published.pth"), str(converted)]) == 0
    assert str(converted) in capsys.readouterr().out
    model = load(name, converted)
    assert not [each for each in model.modules() if "state_dict" in getattr(each, "pretrained_cfg", {})]
    outputs.append(model(IMAGE))
    for each in outputs[1:]:
        torch.testing.assert_close(each, outputs[0])
    assert outputs[0].std() > 0.1 and [p.name for p in converted.parent.iterdir()] == [converted.name]

    fewer = load(name, converted, num_classes=5, in_chans=1)
    assert fewer(IMAGE[:, :1]).shape == (1, 5)
    torch.testing.assert_close(
        fewer.stages[0].blocks[0].norm1.weight, load_file(converted)["stages.0.blocks.0.norm1.weight"]
    )


def test_a_detectors_file_has_no_head(published, tmp_path):
    name, state = published
    trunk = {f"backbone.{k}": v for k, v in state.items() if not k.startswith(("proj.", "norm.", "head."))}
    trunk |= {"backbone.extra_norms.0.norm.weight": torch.ones(64), "neck.weight": torch.ones(1)}
    if name.startswith("soft"):
        trunk.pop("backbone.extra_norms.0.norm.weight")  # SOFT's detectors were not released
    torch.save({"state_dict": trunk}, tmp_path / "detector.pth")
    torch.save(state, tmp_path / "classifier.pth")
    maps = [load(name, tmp_path / file, features_only=True)(IMAGE) for file in ("detector.pth", "classifier.pth")]
    torch.testing.assert_close(maps[0], maps[1])


THIN = dict(dims=(32, 32, 64, 64), num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 1))
TUNED = dict(mavit_tiny=THIN, nalaformer_xtiny=THIN, soft_tiny=THIN, vit_tiny_attention=dict(depth=1, img_size=32))


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("name", TUNED)
def test_a_tuned_models_classes_and_channels_are_its_files(name, channels, tmp_path):
    torch.manual_seed(0)
    tuned, file = (
        timm.create_model(name, num_classes=5, in_chans=channels, **TUNED[name]).eval(),
        tmp_path / "tuned.pth",
    )
    torch.save(tuned.state_dict(), file)
    image = torch.randn(1, channels, 32, 32)
    for options in ({}, dict(num_classes=5, in_chans=channels)):
        torch.testing.assert_close(load(name, file, **TUNED[name], **options)(image), tuned(image))
    other = load(name, file, **TUNED[name], num_classes=7)
    assert other.num_classes == 7
    torch.testing.assert_close(other.forward_features(image), tuned.forward_features(image))
    gray = torch.randn(1, 1, 32, 32)  # a channel takes the sum of the weights of all
    if channels == 3:
        adapted = load(name, file, **TUNED[name], in_chans=1)
        torch.testing.assert_close(adapted(gray), tuned(gray.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["mavit_tiny", "nalaformer_xtiny", "soft_tiny"])
def test_a_file_without_a_classifier_takes_a_new_one(name, tmp_path):
    torch.manual_seed(0)
    tuned = timm.create_model(name, num_classes=0, **THIN).eval()
    torch.save(tuned.state_dict(), tmp_path / "embedding.pth")
    model = load(name, tmp_path / "embedding.pth", num_classes=5, **THIN)
    assert model(IMAGE).shape == (1, 5)
    model.reset_classifier(0)
    torch.testing.assert_close(model(IMAGE), tuned(IMAGE))


def test_our_own_detectors_file(tmp_path):
    """As mmengine saves it: under ``backbone.body.``, norms of the maps beside."""
    torch.manual_seed(0)
    plain = timm.create_model("nalaformer_xtiny").eval()
    state = {f"backbone.body.{k}": v for k, v in plain.state_dict().items() if k.startswith(("stem.", "stages."))}
    state |= {"backbone.norms.0.weight": torch.ones(32), "neck.weight": torch.ones(1)}
    torch.save({"state_dict": state, "meta": {"epoch": 1}}, tmp_path / "detector.pth")
    model = load("nalaformer_xtiny", tmp_path / "detector.pth", features_only=True)
    torch.testing.assert_close(model(IMAGE)[-1], plain.forward_features(IMAGE))


class Evil:
    def __reduce__(self):
        return exec, ("raise AssertionError('the file was run')",)


@pytest.mark.parametrize("name", ["mavit_tiny", "nalaformer_xtiny", "soft_tiny", "vit_tiny_attention"])
@pytest.mark.parametrize("option", ["pretrained_cfg_overlay", "pretrained_cfg"])
def test_no_code_of_a_file_is_run(name, option, tmp_path):
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(VisionKitError, match="evil.pth: refused, it would run '.*exec'"):
        timm.create_model(name, pretrained=True, **{option: dict(file=str(tmp_path / "evil.pth"))})


def test_a_vits_file_is_read_and_not_kept(tmp_path):
    torch.manual_seed(0)
    options = dict(depth=1, img_size=32)
    plain = timm.create_model("vit_tiny_attention", **options).eval()
    torch.save({"model": plain.state_dict(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "vit.pth")
    model = load("vit_tiny_attention", tmp_path / "vit.pth", **options)
    torch.testing.assert_close(model(IMAGE), plain(IMAGE))
    assert model.pretrained_cfg["file"] == str(tmp_path / "vit.pth") and "state_dict" not in model.pretrained_cfg


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("name", ["mavit_tiny", "nalaformer_xtiny", "soft_tiny", "vit_tiny_attention"])
def test_what_timm_saves_in_a_folder_is_loaded_from_there(name, safe, tmp_path):
    from timm.models import save_for_hf

    torch.manual_seed(0)
    options = dict(attention="linear", depth=1, img_size=32) if name.startswith("vit") else {}
    model = timm.create_model(f"{name}.untrained", num_classes=3, **options).eval()
    save_for_hf(model, tmp_path, model_args=options, safe_serialization=safe)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(again(IMAGE), model(IMAGE))


def test_the_released_soft_small_is_deeper(tmp_path):
    with torch.device("meta"):
        ours = timm.create_model("soft_small", depths=(1, 3, 20, 4)).state_dict()
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in ours.items()}
    assert soft.options_of("soft_small", state) == dict(depths=(1, 3, 20, 4))
    assert soft.options_of("soft_tiny", state) == {}
    torch.save(state, tmp_path / "soft_small.pth")
    model = load("soft_small", tmp_path / "soft_small.pth")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(38.86, abs=0.01)
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "soft_small.pth"))
    with pytest.raises(VisionKitError, match=r"released soft_small; build the model with depths=\(1, 3, 20, 4\)"):
        MODELS.build(dict(type="visionkit.SOFT", arch="small", init_cfg=init_cfg)).init_weights()
    MODELS.build(dict(type="visionkit.SOFT", arch="small", depths=(1, 3, 20, 4), init_cfg=init_cfg)).init_weights()


def test_files_of_another_architecture(published, tmp_path, capsys):
    name, state = published
    other = "mavit_tiny" if name.startswith("soft") else "soft_tiny"
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(VisionKitError, match="the checkpoint has nothing for .*this architecture"):
        timm.create_model(other, pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "wrong.pth")))
    assert main(["convert", other, str(tmp_path / "wrong.pth"), str(tmp_path / "out.safetensors")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "wrong.pth" in error and not (tmp_path / "out.safetensors").exists()
    torch.save(dict(state, surplus=torch.ones(1)), tmp_path / "more.pth")
    assert main(["convert", name, str(tmp_path / "more.pth"), str(tmp_path / "out.safetensors")]) == 2
    assert "have no place" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["resnet50", "a.pth", "b.safetensors"], "resnet50: not a backbone of visionkit"),
        (["mavit_tiny", "a.pth", "b.pth"], "b.pth: expected a name that ends in .safetensors"),
        (["mavit_tiny", "absent.pth", "b.safetensors"], "absent.pth: no such checkpoint"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    assert main(["convert", *arguments]) == 2
    assert message in capsys.readouterr().err
