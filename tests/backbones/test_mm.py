import json
import pickle
from pathlib import Path

import pytest
import timm
import torch
from mmengine.logging import MMLogger
from reference.common import fill_state_dict
from safetensors.torch import save_file
from torch import nn

from visionkit.backbones import MMBackbone
from visionkit.errors import VisionKitError
from visionkit.registry import MODELS

CASES = Path(__file__).parents[1] / "reference" / "cases"
THIN = dict(dims=(32, 32, 64, 64), num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 1))


def build(name="MAViT", **options):
    return MODELS.build(dict(type=f"visionkit.{name}", arch="tiny", **THIN, **options))


@pytest.mark.parametrize("name", ["MAViT", "NaLaFormer", "SOFT", "SOFTNorm"])
def test_gives_a_tuple_of_the_chosen_maps(name):
    net = build(name, out_indices=(1, 3))
    assert isinstance(net, MMBackbone) and net.channels == [32, 64]
    maps = net(torch.randn(1, 3, 64, 96))
    assert isinstance(maps, tuple) and [tuple(each.shape[1:]) for each in maps] == [(32, 8, 12), (64, 2, 3)]
    sum(each.sum() for each in maps).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_frozen_stages_and_norm_eval():
    net = build(frozen_stages=1, norm_eval=True, out_norms=True)
    body = net.train().body
    assert not any(p.requires_grad for part in (body.stem, body.stages[0]) for p in part.parameters())
    assert all(p.requires_grad for p in body.stages[1].parameters())
    assert not any(module.training for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    assert body.stages[1].training and not body.stages[0].training
    maps = net(torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(maps[0].mean(dim=1), torch.zeros(1, 16, 16), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(arch="micro"), "arch='micro': expected one of base, large, small, tiny"),
        (dict(out_indices=(0, 4)), "out_indices: 4 is not a stage"),
        (dict(out_indices=()), r"^out_indices=\(\): expected a tuple of at least one of 0, 1, 2 and 3$"),
        (dict(out_indices=2), "^out_indices=2: expected a tuple"),
        (dict(pretrained=True), "^pretrained=True: expected a file"),
        (dict(frozen_stages=7), "frozen_stages=7"),
        (dict(checkpoint_path="mavit.pth"), "checkpoint_path: is not read; name the file by pretrained="),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(VisionKitError, match=message):
        MMBackbone.__subclasses__()[0](**dict(THIN, **options))


def same(net, other):
    return all(torch.equal(value, other.state_dict()[key]) for key, value in net.state_dict().items())


def start_from(file, **options):
    net = build(init_cfg=dict(type="Pretrained", checkpoint=str(file)), **options)
    net.init_weights()
    return net


@pytest.mark.parametrize("way", ["init_cfg", "pretrained"])
def test_the_released_norms_of_maps_are_taken_by_stage(tmp_path, way):
    whole = timm.create_model("mavit_tiny", **THIN)
    state = {f"backbone.{key}": value for key, value in whole.state_dict().items()}
    for stage, dim in enumerate(THIN["dims"]):
        state[f"backbone.extra_norms.{stage}.norm.weight"] = torch.full((dim,), 3.0 + stage)
        state[f"backbone.extra_norms.{stage}.norm.bias"] = torch.full((dim,), 1.0)
    file = tmp_path / "detector.pth"
    torch.save(dict(state_dict=state), file)
    options = dict(out_norms=True, out_indices=(1, 3))
    net = start_from(file, **options) if way == "init_cfg" else build(pretrained=str(file), **options)
    assert [norm.weight[0].item() for norm in net.norms] == [4, 6] and net.norms[0].bias[0] == 1


def test_init_cfg_takes_files_under_all_names(tmp_path):
    whole = timm.create_model("mavit_tiny", **THIN)
    state, body = whole.state_dict(), build()
    body.body.load_state_dict({key: state[key] for key in body.body.state_dict()})
    torch.save(state, tmp_path / "plain.pth")
    torch.save(dict(state_dict=state, meta=dict(epoch=1)), tmp_path / "wrapped.pth")
    torch.save({f"backbone.{key}": value for key, value in body.state_dict().items()}, tmp_path / "detector.pth")
    torch.save(body.state_dict(), tmp_path / "backbone.pth")
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "ours.safetensors")
    for file in tmp_path.iterdir():
        assert same(start_from(file), body), file
    fewer = start_from(tmp_path / "plain.pth", out_indices=(0, 2))
    assert len(fewer.body.stages) == 3 and same(fewer, body)


def test_a_tuned_classifiers_file_is_taken(tmp_path):
    torch.save(timm.create_model("mavit_tiny", num_classes=5, **THIN).state_dict(), tmp_path / "tuned.pth")
    assert same(build(pretrained=str(tmp_path / "tuned.pth")), start_from(tmp_path / "tuned.pth"))


def test_init_cfg_takes_published_names(tmp_path):
    shapes = json.loads((CASES / "mavit_tiny.json").read_text())["state_dict"]
    state = fill_state_dict(shapes)
    torch.save(dict(model=state), tmp_path / "MAViT_T.pth")
    net = MODELS.build(
        dict(type="visionkit.MAViT", init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "MAViT_T.pth")))
    )
    net.init_weights()
    assert torch.equal(net.body.stem[0].conv.weight, state["patch_embed.proj.0.weight"])
    assert torch.equal(net.body.stages[3].blocks[1].attn.proj.bias, state["layers.3.blocks.1.attn.proj.bias"])


def test_init_cfg_takes_output_norms_and_a_prefix(tmp_path):
    net = build(out_norms=True)
    torch.nn.init.normal_(net.norms[2].weight)
    torch.save({f"student.backbone.{key}": value for key, value in net.state_dict().items()}, tmp_path / "student.pth")
    other = build(
        out_norms=True,
        init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "student.pth"), prefix="student.backbone"),
    )
    other.init_weights()
    assert same(other, net)
    torch.save({f"backbone.{key}": value for key, value in net.state_dict().items()}, tmp_path / "detector.pth")
    assert same(build(pretrained=str(tmp_path / "detector.pth")), build_like(net))


def build_like(net):
    """The same weights without the norms of the maps."""
    other = build()
    other.body.load_state_dict(net.body.state_dict())
    return other


@pytest.mark.parametrize(
    "init_cfg, message",
    [
        (dict(checkpoint="a.pth"), r"^init_cfg: \{'checkpoint': 'a.pth'\}; expected a dictionary with a type"),
        (["a.pth"], "^init_cfg: 'a.pth'; expected a dictionary with a type"),
        (dict(type="Pretrained"), "^init_cfg: type='Pretrained' without a file"),
        ([dict(type="Pretrained", checkpoint=None)], "^init_cfg: type='Pretrained' without a file"),
    ],
)
def test_wrong_init_cfgs(init_cfg, message):
    with pytest.raises(VisionKitError, match=message):
        build(init_cfg=init_cfg).init_weights()


def test_the_log_says_what_was_loaded(tmp_path):
    """It said that nothing had changed."""
    torch.save(timm.create_model("mavit_tiny", **THIN).state_dict(), tmp_path / "plain.pth")
    logger = MMLogger.get_instance("loading", log_file=str(tmp_path / "log.txt"))
    start_from(tmp_path / "plain.pth")
    for handler in logger.handlers:
        handler.flush()
    log = (tmp_path / "log.txt").read_text()
    assert f"load model from: {tmp_path / 'plain.pth'}" in log
    of_stem = log[log.index("\nbody.stem.0.conv.weight - ") :].splitlines()[2]
    assert of_stem.strip() == f"FileInit: load from {tmp_path / 'plain.pth'}"


@pytest.mark.parametrize("name", ["MAViT", "NaLaFormer", "SOFT", "SOFTNorm"])
def test_can_be_pickled_whole(name):
    net, image = build(name).eval(), torch.randn(1, 3, 64, 64)
    for each, expected in zip(pickle.loads(pickle.dumps(net))(image), net(image)):
        torch.testing.assert_close(each, expected)


def test_init_cfg_of_another_architecture_is_told(tmp_path):
    torch.save(dict(weight=torch.ones(3)), tmp_path / "other.pth")
    with pytest.raises(VisionKitError, match="other.pth: MAViT: the checkpoint has nothing for stem.0.conv.weight"):
        start_from(tmp_path / "other.pth")
    with pytest.raises(VisionKitError, match="absent.pth: no such checkpoint"):
        start_from(tmp_path / "absent.pth")
    build(init_cfg=dict(type="Kaiming", layer="Conv2d")).init_weights()
