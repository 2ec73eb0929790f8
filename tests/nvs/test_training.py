"""NViST's scores, stages and small weights, on trees of a few tiny scenes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch.utils.data import default_collate

from visionkit.cli import main
from visionkit.engine.checkpoints import load_checkpoint, save_checkpoint
from visionkit.engine.config import check_types, load_config
from visionkit.engine.pipeline import Context, build_stage, run_pipeline
from visionkit.errors import VisionKitError
from visionkit.nvs.inferencer import NVSInferencer
from visionkit.nvs.losses import PerceptualLoss
from visionkit.nvs.metrics import ViewMetric, psnr, ssim
from visionkit.nvs.model import MAEFineTuning, NViST
from visionkit.nvs.mvimgnet import MVImgNet
from visionkit.nvs.weights import SHIPPED, build_described, load_shipped, load_small, save_small

pytest.importorskip("pycolmap")
ROOT = Path(__file__).parents[2]
SIZE = (40, 20)  # as conftest.py's
MODEL = dict(
    encoder_patch_size=10,
    encoder_embed_dim=16,
    encoder_depth=1,
    encoder_num_heads=2,
    decoder_embed_dim=16,
    decoder_depth=2,
    decoder_num_heads=2,
    decoder_output_dim=8,
    sigma_dim=2,
    rgb_dim=6,
    resolution=6,
    rgb_feature_dim=8,
    num_samples=6,
    extra_rays=40,
    whole_view=False,
    lpips_weight=0,
)


def test_psnr_and_ssim_equal_their_formulas():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 14, 13, generator=generator, dtype=torch.float64)
    b = (a + 0.1 * torch.rand(a.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    for i in range(2):
        assert psnr(a, b)[i] == pytest.approx(10 * np.log10(1 / ((a[i] - b[i]) ** 2).mean().item()))
    offset = np.arange(11) - 5
    window = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    window /= window.sum()
    for i in range(2):
        values = []
        for c in range(3):
            for y in range(14 - 10):
                for x in range(13 - 10):
                    p, q = (image[i, c, y : y + 11, x : x + 11].numpy() for image in (a, b))
                    mp, mq = (window * p).sum(), (window * q).sum()
                    vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                    cov = (window * (p - mp) * (q - mq)).sum()
                    top = (2 * mp * mq + 0.01**2) * (2 * cov + 0.03**2)
                    values.append(top / ((mp**2 + mq**2 + 0.01**2) * (vp + vq + 0.03**2)))
        assert ssim(a, b)[i] == pytest.approx(np.mean(values), abs=1e-9)
    assert ssim(a, a).tolist() == pytest.approx([1, 1])


def test_the_metric_leaves_the_input_view_out_and_averages_scenes():
    metric = ViewMetric(lpips=None)
    target = torch.full((2, 3, 3, 12, 12), 0.5)
    predicted = target.clone()
    predicted[:, 0] = 0  # a wrong input view does not count
    predicted[0, 1:] += 0.1
    predicted[1, 1:] += 0.01
    metric.process(dict(image=target), predicted)
    assert metric.compute_metrics(metric.results)["PSNR"] == pytest.approx((20 + 40) / 2, abs=1e-3)


class FakeLPIPS(torch.nn.Module):
    """Squared error on the scale that the network is used with, as lpips.LPIPS has it."""

    def forward(self, image, target, normalize=False):
        scale = 2 if normalize else 1
        return (scale * (image - target)).square().mean(dim=(1, 2, 3), keepdim=True)


@pytest.fixture
def lpips_at_hand(tmp_path, monkeypatch):
    import lpips

    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(lpips, "LPIPS", lambda **_: FakeLPIPS())


def test_lpips_is_scaled_rightly_or_as_released(lpips_at_hand):
    pair = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, 3, 4, 4)
    assert PerceptualLoss()(*pair).tolist() == [1, 1]  # on [-1, 1]
    assert PerceptualLoss(scaling="released")(*pair).tolist() == [0.25, 0.25]
    with pytest.raises(VisionKitError, match="lpips_scaling='left'"):
        PerceptualLoss(scaling="left")
    with pytest.raises(VisionKitError, match="lpips='squeeze': expected one of 'vgg', 'alex'"):
        ViewMetric(lpips="squeeze")


def test_lpips_joins_the_loss_and_the_scores(lpips_at_hand, tree):
    batch = default_collate([MVImgNet(str(tree), img_size=SIZE)[0]])
    batch.pop("path")
    options = dict(MODEL, whole_view=True, lpips_weight=0.5)
    torch.manual_seed(0)
    with_lpips = NViST(SIZE, **options)(scenes=batch, mode="loss")
    torch.manual_seed(0)
    without = NViST(SIZE, **dict(options, lpips_weight=0))(scenes=batch, mode="loss")
    assert with_lpips.keys() - without.keys() == {"loss_lpips"} and with_lpips["loss_lpips"] > 0
    metric, target = ViewMetric(), torch.full((1, 20, 3, 12, 12), 0.5)
    metric.process(dict(image=target), target - 0.25)
    assert metric.compute_metrics(metric.results)["LPIPS"] == pytest.approx(0.25)


def test_without_its_weights_lpips_is_off_and_says_so(tmp_path, monkeypatch, lpips_at_hand):
    import lpips

    found = []
    monkeypatch.setattr("visionkit.nvs.losses.print_log", lambda text, *_: found.append(text))
    monkeypatch.setattr(lpips, "LPIPS", lambda **_: torch.load(tmp_path / "checkpoints" / "vgg16-397923af.pth"))
    with pytest.raises(VisionKitError, match="vgg16-397923af.pth: cannot be read"):
        PerceptualLoss()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "nowhere"))
    loss = PerceptualLoss()
    assert not loss.available and "LPIPS is off" in found[0] and "download.pytorch.org" in found[0]
    assert ViewMetric().lpips is None


def config(tree, **changes):
    stages = dict(
        mae=dict(
            type="visionkit.MAEStage",
            model=dict(
                patch_size=10, embed_dim=16, depth=1, num_heads=2, decoder_embed_dim=16, decoder_depth=1, bf16=True
            ),
            batch_size=2,
            epochs=1,
            iters_per_epoch=2,
            warmup_iters=1,
            ema=None,
        ),
        nvist=dict(
            type="visionkit.NViSTStage",
            init_from="mae",
            model=MODEL,
            views=3,
            batch_size=2,
            epochs=2,
            iters_per_epoch=4,
            warmup_iters=2,
            ema=0.5,
            metric=dict(lpips=None),
            report="tiny",
        ),
    )
    stages["nvist"].update(changes)
    source = dict(type="visionkit.MVImgNet", root=str(tree))
    return Config(dict(source=source, image_size=SIZE, stages=stages))


@pytest.fixture(scope="module")
def trained(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run_pipeline(config(tree), folder)


def test_both_stages_train_and_report(trained):
    folder, rows = trained
    assert [row["model"] for row in rows] == ["tiny"] and rows[0]["PSNR"] > 3 and -1 < rows[0]["SSIM"] < 1
    assert Image.open(folder / "nvist" / "views.jpg").size[1] >= SIZE[0]
    meta = load_checkpoint(folder / "nvist" / "epoch_2.pth")["meta"]
    assert 0 < meta["near_far"][0] < meta["distance"] < meta["near_far"][1] and meta["centre"] == "viewed"


def test_a_checkpoint_is_scored_again_without_what_it_began_from(trained, tree, tmp_path, capsys):
    folder, rows = trained
    cfg = config(tree, model=dict(MODEL, mae_checkpoint=str(tmp_path / "gone_mae.pth")))
    cfg.dump(str(tmp_path / "again.py"))
    command = ["test", str(tmp_path / "again.py"), str(folder / "nvist" / "epoch_2.pth"), "--work-dir", str(tmp_path)]
    assert main(command) == 0
    assert f"{rows[0]['PSNR']:.1f}" in capsys.readouterr().out
    assert main([*command, "--cfg-options", "stages.nvist.test.include_input=True"]) == 0
    assert main([*command, "--cfg-options", "stages.nvist.model.num_samples=5"]) == 0
    assert main([*command, "--cfg-options", "stages.nvist.model.decoder_num_heads=4"]) == 2
    assert "was trained with decoder_num_heads=2, stage nvist says 4" in capsys.readouterr().err


def test_the_mean_weights_are_saved_and_tested(trained, tree, tmp_path):
    folder, rows = trained
    averaged = load_checkpoint(folder / "nvist" / "epoch_2.pth")
    plain_rows = run_pipeline(config(tree, ema=None), tmp_path)
    plain = load_checkpoint(tmp_path / "nvist" / "epoch_2.pth")["state_dict"]
    key = "decoder.output_token"
    assert torch.equal(averaged["ema_state_dict"][f"module.{key}"], plain[key])  # the running weights, put aside
    assert not torch.equal(averaged["state_dict"][key], plain[key])
    assert plain_rows[0]["PSNR"] != rows[0]["PSNR"]


def test_a_stopped_training_ends_in_the_same_weights(trained, tree, tmp_path):
    folder, _ = trained
    shutil.copytree(folder, tmp_path / "again")
    for path in (tmp_path / "again" / "nvist").iterdir():
        if path.name.startswith(("epoch_2", "done", "results", "views")):
            path.unlink()
    run_pipeline(config(tree), tmp_path / "again")
    first, second = (load_checkpoint(place / "nvist" / "epoch_2.pth") for place in (folder, tmp_path / "again"))
    for part in ("state_dict", "ema_state_dict"):
        assert all(torch.equal(value, second[part][key]) for key, value in first[part].items())


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(model=dict(MODEL, resolutoin=6)), "resolution"),
        (dict(lr=dict(encodr=1e-3)), "encoder"),
        (dict(ema=1.5), "ema=1.5"),
        (dict(warmup_iters=8), "warmup_iters"),
        (dict(model=dict(MODEL, lpips_weight=0.1)), "whole_view"),
        (dict(lr=dict(decoder=0)), "stage nvist, lr: decoder=0; expected a number above 0"),
        (dict(lr=dict(encoder=float("nan"))), "stage nvist, lr: encoder=nan"),
        (dict(batch_size=0), "batch_size=0; expected a whole number of at least 1"),
        (dict(views=1), "views=1; expected a whole number of at least 2"),
        (dict(epochs="x"), "epochs='x'"),
        (dict(clip=-1), "clip=-1; expected a number above 0"),
        (dict(ema="x"), "ema='x'"),
        (dict(metric=dict(lpips="x")), "lpips='x'"),
        (dict(model=dict(MODEL, depth_weight=float("nan"))), "depth_weight=nan; expected a number of at least 0"),
        (dict(model=dict(MODEL, distortion_weight="x")), "distortion_weight='x'"),
        (dict(model=dict(MODEL, box=0)), "box=0; expected a number above 0"),
        (dict(model=dict(MODEL, extra_rays=0)), "extra_rays=0; expected a whole number of at least 1"),
        (dict(model=dict(MODEL, chunk=0)), "chunk=0"),
        (dict(model=dict(MODEL, encoder_depth=-1)), "encoder: depth=-1"),
        (dict(model=dict(MODEL, decoder_depth=0)), "decoder: depth=0"),
        (dict(model=dict(MODEL, viewdir_pe=-1)), "renderer: viewdir_pe=-1"),
        (dict(model=dict(MODEL, frustum_depths=-1)), "frustum_depths=-1"),
        (dict(model=dict(MODEL, mae_checkpoint="gone.pth")), "gone.pth: no such checkpoint"),
    ],
)
def test_wrong_settings_are_one_line_before_any_stage_works(tree, tmp_path, changes, words):
    with pytest.raises(VisionKitError, match=words) as error:
        run_pipeline(config(tree, init_from=None, **changes), tmp_path, only=None)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(lr=-1), "stage mae: lr=-1; expected a number above 0"),
        (dict(model=dict(depth=0)), "encoder: depth=0"),
        (dict(model=dict(decoder_depth=0)), "decoder_depth=0"),
        (dict(model=dict(mask_ratio="x")), "stage mae: cannot be built from its settings"),
        (dict(model=dict(patch_size=7)), "expected multiples of encoder_patch_size=7"),
    ],
)
def test_wrong_settings_of_the_autoencoder_are_one_line(tree, tmp_path, changes, words):
    cfg = config(tree)
    cfg["stages"]["mae"].update(changes)
    with pytest.raises(VisionKitError, match=words):
        run_pipeline(cfg, tmp_path)
    assert not list(tmp_path.iterdir())


def test_each_part_has_its_rate_and_schedule(tree, tmp_path):
    cfg = config(tree, init_from=None, lr=dict(encoder=1e-4, decoder=2e-4, renderer=4e-4))
    stage = build_stage("nvist", cfg["stages"]["nvist"])
    built = stage.runner_cfg(Context(cfg, tmp_path, 1, "none", {}))
    from mmengine.optim import build_optim_wrapper

    model = NViST(img_size=SIZE, **MODEL)
    wrapper = build_optim_wrapper(model, built["optim_wrapper"])
    rates = {id(group["params"][0]): group["lr"] for group in wrapper.optimizer.param_groups}
    for part, rate in dict(encoder=1e-4, decoder=2e-4, renderer=4e-4).items():
        assert {round(rates[id(p)], 9) for p in getattr(model, part).parameters() if p.requires_grad} == {rate}
    assert [each["end"] for each in built["param_scheduler"]] == [2, 8]


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs").glob("nvist_*.py")))
def test_configs_name_what_exists(name, tmp_path):
    cfg = load_config(ROOT / "configs" / name)
    outputs = {}
    for stage_name, options in cfg["stages"].items():
        stage = build_stage(stage_name, options)
        check_types(stage.runner_cfg(Context(cfg, tmp_path, 1, "none", outputs)))
    if "synthetic" in name and "gpu" not in name:
        model = NViST(**dict(cfg["stages"]["nvist"]["model"], img_size=tuple(cfg["image_size"])))
        assert sum(p.numel() for p in model.parameters()) * 2 < 20e6


@pytest.mark.parametrize("kind, options", [(NViST, MODEL), (MAEFineTuning, {})])
def test_every_parameter_that_is_trained_gets_a_gradient(tree, kind, options):
    """Several processes would wait for one that never comes."""
    own = {key: value for key, value in MODEL.items() if key.startswith("encoder_")}
    sizes = options or {key.removeprefix("encoder_"): value for key, value in own.items()}
    model = kind(img_size=SIZE, **sizes)
    scenes = default_collate([MVImgNet(str(tree), img_size=SIZE, views=3)[0]])
    sum(model(scenes=scenes, mode="loss").values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_checkpoint_names_no_class_to_call(tmp_path):
    path = tmp_path / "odd.pth"
    for name in ("os.getcwd", "visionkit.MAEFineTuning"):
        save_checkpoint(dict(state_dict={}, meta=dict(model=json.dumps(dict(type=name, wrong=1)))), path)
        with pytest.raises(VisionKitError, match=f"holds a {name}; expected a visionkit.NViST"):
            NVSInferencer(path)
    save_checkpoint(dict(state_dict={}, meta=dict(model=json.dumps(dict(type="visionkit.NViST", wrong=1)))), path)
    with pytest.raises(VisionKitError, match="unknown key 'wrong'"):
        NVSInferencer(path)
    with pytest.raises(VisionKitError, match="unknown key 'wrong'"):
        build_described(dict(wrong=1), path)
    with pytest.raises(VisionKitError, match="nowhere"):
        NVSInferencer(device="nowhere")


def test_small_weights_come_back_and_damaged_ones_are_refused(tmp_path):
    torch.manual_seed(0)
    model = NViST(img_size=SIZE, **MODEL).eval()
    options = dict(MODEL, img_size=SIZE)
    save_small(tmp_path / "a.safetensors", model, options, dict(near_far=[0.1, 1.2], distance=0.6))
    state = torch.random.get_rng_state()
    again, scale = load_small(tmp_path / "a.safetensors")
    assert torch.equal(state, torch.random.get_rng_state())
    assert scale == dict(near_far=[0.1, 1.2], distance=0.6, centre="cube") and not again.training
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.half().float())
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(data[: len(data) // 2])
    for name in ("b.safetensors", "c.safetensors"):
        with pytest.raises(VisionKitError, match=name):
            load_small(tmp_path / name)


@pytest.mark.skipif(not SHIPPED.is_file(), reason="no weights in this checkout")
def test_the_shipped_model_renders_what_it_sees(tree):
    assert SHIPPED.stat().st_size < 20e6
    model, scale = load_shipped()
    data = MVImgNet(str(tree), split="test", img_size=model.img_size)
    item = data[0]
    with torch.inference_mode():
        grids = model.represent(item["image"][:1], item["camera_params"][None])
        seen = model.render_views(
            grids, item["c2w"][None, :1], item["focal"][None, :1], torch.tensor([scale["near_far"]])
        )
    rendered = seen.rgb[0, 0].movedim(-1, 0)
    grey = item["image"][0].mean(dim=(1, 2), keepdim=True).expand_as(rendered)
    assert psnr(rendered[None], item["image"][:1]) > psnr(grey[None], item["image"][:1])
