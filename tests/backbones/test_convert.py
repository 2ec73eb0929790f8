"""Wrong files and wrong outputs of ``visionkit convert``: one line, status 2, nothing written."""

import argparse
import os
import re

import pytest
import timm
import torch
from safetensors.torch import load_file

import visionkit.backbones  # noqa: F401
from visionkit.cli import main


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return timm.create_model("nalaformer_xtiny", num_classes=3).state_dict()


def convert(name, state, folder, capsys):
    """Status, and the lines that a user reads."""
    torch.save(state, folder / "in.pth")
    status = main(["convert", name, str(folder / "in.pth"), str(folder / "out.safetensors")])
    return status, capsys.readouterr()


WRONG = {
    "a number for a name": ({3: torch.ones(1)}, "in.pth: holds a Tensor under 3, expected tensors by name"),
    "a list for a tensor": ({"norm.bias": [0.0]}, "in.pth: holds a list under 'norm.bias'"),
    "an int": ({"stem.0.norm.num_batches_tracked": 7}, "holds a int under 'stem.0.norm.num_batches_tracked'"),
    "no dimension": ({"head.bias": torch.ones(())}, r"head.weight has shape|head.bias has shape \(\)"),
    "two dimensions": ({"head.bias": torch.ones(3, 1)}, r"head.bias has shape \(3, 1\)"),
    "another width": ({"head.weight": torch.ones(3, 7)}, r"head.weight has shape \(3, 7\), expected \(3, 1024\)"),
    "other classes": ({"head.weight": torch.ones(4, 1024)}, "is of another architecture .*head.weight"),
    "one more of the head": ({"head.extra": torch.ones(3)}, "head.extra and 0 more entries have no place"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_line(case, weights, tmp_path, capsys):
    changes, message = WRONG[case]
    status, said = convert("nalaformer_xtiny", weights | changes, tmp_path, capsys)
    assert status == 2 and said.err.count("\n") == 1 and "in.pth" in said.err
    assert re.search(message, said.err)
    assert os.listdir(tmp_path) == ["in.pth"]


def test_a_name_that_asks_for_thousands_of_blocks(weights, tmp_path, capsys):
    with torch.device("meta"):
        state = {key: torch.zeros(value.shape) for key, value in timm.create_model("soft_tiny").state_dict().items()}
    state["stages.2.blocks.3000.norm1.weight"] = torch.ones(320)
    status, said = convert("soft_tiny", state, tmp_path, capsys)
    assert status == 2 and "stages.2.blocks.3000.norm1.weight and 0 more entries have no place" in said.err


def test_other_image_channels(tmp_path, capsys):
    state = timm.create_model("nalaformer_xtiny", in_chans=4, num_classes=3).state_dict()
    status, _ = convert("nalaformer_xtiny", state, tmp_path, capsys)
    assert status == 0
    assert torch.equal(load_file(tmp_path / "out.safetensors")["stem.0.conv.weight"], state["stem.0.conv.weight"])


def test_a_file_that_keeps_its_options_in_a_namespace(weights, tmp_path, capsys):
    assert convert("nalaformer_xtiny", dict(model=weights, args=argparse.Namespace(lr=0.1)), tmp_path, capsys)[0] == 0


@pytest.mark.parametrize("name", ["nalaformer_xtiny", "mavit_tiny", "soft_tiny"])
def test_a_detectors_file_gets_no_head(name, tmp_path, capsys):
    torch.manual_seed(0)
    model = timm.create_model(name)
    state = {f"backbone.{k}": v for k, v in model.state_dict().items() if k.startswith(("stem.", "stages."))}
    status, said = convert(name, state, tmp_path, capsys)
    written = load_file(tmp_path / "out.safetensors")
    assert status == 0 and re.search("has no head.*, as a detector's backbone", said.out)
    assert {f"backbone.{key}" for key in written} == set(state)
    file = dict(file=str(tmp_path / "out.safetensors"))
    again = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=file, features_only=True).eval()
    image = torch.randn(1, 3, 64, 64)
    assert torch.allclose(again(image)[-1], timm_features(model, image), atol=1e-5)


def timm_features(model, image):
    return model.eval().forward_intermediates(image, intermediates_only=True)[-1]


def test_outputs_that_cannot_be_written(weights, tmp_path, capsys):
    (tmp_path / "out.safetensors").mkdir()
    status, said = convert("nalaformer_xtiny", weights, tmp_path, capsys)
    assert status == 2 and "out.safetensors: is a folder" in said.err
    (tmp_path / "out.safetensors").rmdir()
    (tmp_path / "file").write_text("")
    torch.save(weights, tmp_path / "in.pth")
    assert (
        main(["convert", "nalaformer_xtiny", str(tmp_path / "in.pth"), str(tmp_path / "file" / "a.safetensors")]) == 2
    )
    assert "a.safetensors: cannot be written" in capsys.readouterr().err
