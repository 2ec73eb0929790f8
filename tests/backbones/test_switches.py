import pytest
import timm
import torch

from visionkit.backbones import AttentionLayer, attention_names, set_attention
from visionkit.backbones.adapters import add_p_adapters
from visionkit.backbones.attention import AttentionCore
from visionkit.backbones.soft import average_down
from visionkit.errors import VisionKitError
from visionkit.registry import MODELS

THIN = dict(dims=(32, 32, 64, 64), num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 1), num_classes=7)


def output(name, **options):
    torch.manual_seed(0)
    model = timm.create_model(name, **dict(THIN, **options)).eval()
    with torch.no_grad():
        return model, model(torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    "name, options",
    [
        ("mavit_tiny", dict(attn_types=("linear",) * 4)),
        ("mavit_tiny", dict(normalise_rotated=True)),
        ("nalaformer_tiny", dict(attn_types=("linear",) * 4)),
        ("nalaformer_tiny", dict(feature_map="cosine")),
        ("soft_tiny", dict(symmetric=True)),
        ("soft_tiny", dict(newton_steps=3)),
        ("soft_tiny", dict(landmark="pool")),
        ("soft_tiny", dict(max_landmarks=2)),
        ("soft_tiny", dict(last_stage="gaussian")),
    ],
)
def test_a_switch_changes_the_output_and_keeps_it_finite(name, options):
    _, plain = output(name)
    model, switched = output(name, **options)
    assert switched.shape == plain.shape and switched.isfinite().all()
    assert (switched - plain).abs().max() > 1e-6
    model.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_pooled_landmarks_have_no_parameters():
    count = lambda **options: sum(p.numel() for p in timm.create_model("soft_tiny", **options).parameters()) / 1e6
    with torch.device("meta"):
        assert count(landmark="pool") == pytest.approx(12.96, abs=0.005)


def test_solve_and_newton_agree():
    for name in ("soft_tiny", "soft_norm_tiny"):
        _, newton = output(name, inverse="newton")
        _, solve = output(name, inverse="solve")
        torch.testing.assert_close(solve, newton, rtol=0, atol=0.01 * newton.std().item())


def test_average_down_keeps_the_aspect():
    assert average_down(torch.zeros(1, 2, 25, 41), 49).shape[-2:] == (5, 9)
    assert average_down(torch.zeros(1, 2, 7, 7), 49).shape[-2:] == (7, 7)
    assert average_down(torch.zeros(1, 2, 1, 100), 49).shape[-2:] == (1, 49)


def test_purely_linear_models_have_no_softmax():
    model = timm.create_model("mavit_tiny", attn_types=("linear",) * 4)
    assert {core.name for core in model.modules() if isinstance(core, AttentionCore)} == {"mala"}


SELF_CONTAINED = ["softmax", "mala", "nala", "gaussian", "gaussian_norm", "linear", "sigmoid", "gaam", "norm"]


@pytest.mark.parametrize("name", SELF_CONTAINED)
def test_any_attention_in_any_backbone(name):
    assert name in attention_names()
    image = torch.randn(2, 3, 64, 64)
    for family in ("mavit_tiny", "nalaformer_tiny", "soft_tiny"):
        model = timm.create_model(family, **THIN, attention=name)
        loss = model(image).square().sum()
        loss.backward()
        assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    vit = timm.create_model("vit_tiny_attention", attention=name, depth=1, img_size=32, num_classes=3)
    assert vit(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_softmax_layer_is_timms():
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32).eval()
    image = torch.randn(1, 3, 32, 32)
    expected = plain(image)
    torch.testing.assert_close(set_attention(plain, "softmax")(image), expected)
    assert isinstance(plain.blocks[0].attn, AttentionLayer)


def test_norms_and_dropout_of_the_output_stay():
    torch.manual_seed(0)
    options = dict(depth=1, img_size=32, qk_norm=True, scale_attn_norm=True, proj_drop_rate=0.5)
    plain = timm.create_model("vit_tiny_patch16_224", **options).eval()
    image = torch.randn(1, 3, 32, 32)
    expected, names = plain(image), set(plain.state_dict())
    again = set_attention(plain, "softmax")
    torch.testing.assert_close(again(image), expected)
    assert set(again.state_dict()) == names and again.blocks[0].attn.proj_drop.p == 0.5


@pytest.mark.parametrize(
    "name",
    ["davit_tiny", "xcit_nano_12_p16_224", "tiny_vit_5m_224", "beit_base_patch16_224", "swin_tiny_patch4_window7_224"],
)
def test_layers_that_compute_otherwise_are_not_exchanged(name):
    model = timm.create_model(name)  # not on the meta device: those of timm 1.0.16 read numbers off tensors
    for change in (lambda: set_attention(model, "mala"), lambda: add_p_adapters(model)):
        with pytest.raises(VisionKitError, match="has no attention layers like those of timm's ViT"):
            change()


def test_layer_from_a_config():
    layer = MODELS.build(dict(type="visionkit.AttentionLayer", dim=32, num_heads=4, attention="mala"))
    assert layer(torch.randn(2, 9, 32)).shape == (2, 9, 32)
    with pytest.raises(VisionKitError, match="without masks"):
        layer(torch.randn(2, 9, 32), is_causal=True)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: AttentionLayer(32, 4, "mola"), "attention='mola': no such attention; choose one of .*mala"),
        (lambda: timm.create_model("vit_tiny_attention", attention=["mala"] * 12), r"attention=\['mala'.*: no such"),
        (lambda: AttentionLayer(32, 5), "dim=32: expected a multiple of num_heads=5"),
        (lambda: AttentionLayer(32, 4, "mala", sharpness=2), "has no option 'sharpness'; it takes"),
        (lambda: set_attention(torch.nn.Linear(2, 2), "mala"), "Linear: has no attention layers"),
        (lambda: timm.create_model("mavit_tiny", attn_types=("linear", "conv", "softmax", "softmax")), "'conv' is nei"),
        (lambda: timm.create_model("mavit_tiny", attn_types=("linear",)), "four stages, got 1"),
        (lambda: timm.create_model("soft_tiny", landmark="random"), "landmark='random'"),
        (
            lambda: timm.create_model("mavit_tiny", attention="mala", normalise_rotated=True),
            "normalise_rotated: belongs",
        ),
        (lambda: timm.create_model("nalaformer_tiny", attention="nala", feature_map="cosine"), "feature_map: belongs"),
        (
            lambda: timm.create_model("soft_tiny", attention="gaussian", inverse="solve"),
            "inverse: belongs .*'gaussian'",
        ),
        (lambda: timm.create_model("soft_tiny", last_stage="conv"), "last_stage='conv'"),
        (lambda: timm.create_model("soft_tiny", attention=["mala"]), "four stages, got 1"),
        (
            lambda: timm.create_model("soft_tiny", last_stage="gaussian", global_pool="token"),
            "SOFT takes one of 'avg', ''",
        ),
        (lambda: timm.create_model("soft_tiny", max_landmarks=0), "max_landmarks=0: expected a whole number"),
        (lambda: timm.create_model("soft_tiny", max_landmarks=2.5), "max_landmarks=2.5: expected a whole number"),
        (lambda: timm.create_model("mavit_tiny", mlp_ratio=0), "mlp_ratio=0: expected a number above 0"),
        (lambda: timm.create_model("mavit_tiny", projection=0), "projection=0: expected a whole number of at least 1"),
        (lambda: timm.create_model("mavit_tiny", layer_scale=("a",) * 4), "layer_scale='a': expected a number"),
        (
            lambda: timm.create_model("soft_tiny", newton_steps=0),
            "newton_steps=0: expected a whole number of at least 1",
        ),
        (lambda: timm.create_model("soft_tiny", inverse="foo"), "inverse='foo': expected one of 'newton', 'solve'"),
        (lambda: timm.create_model("nalaformer_tiny", feature_map="foo"), "feature_map='foo': expected one of"),
        (lambda: timm.create_model("mavit_tiny", layer_scale=1.0), "layer_scale=1.0: expected four values"),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises(VisionKitError, match=message):
        make()


@pytest.mark.parametrize("name", ["mavit_tiny", "nalaformer_tiny", "soft_tiny"])
@pytest.mark.parametrize(
    "options, message",
    [
        (dict(global_pool="max"), "global_pool='max': .* takes one of .*'avg', ''"),
        (dict(attention_options=dict(scale=2.0)), "attention_options: are of attention="),
        (dict(depths=(1, 1, 1)), r"depths=\(1, 1, 1\): expected four values, one a stage"),
        (dict(depths=(1, 1, 1, 1.5)), r"depths\[3\]=1.5: expected a whole number of at least 1"),
        (dict(num_heads=(1, 2, 2, 0)), r"num_heads\[3\]=0: expected a whole number of at least 1"),
        (dict(drop_path_rate=1.5), "drop_path_rate=1.5: expected a number from 0 to 1"),
        (dict(drop_rate=2), "drop_rate=2: expected a number from 0 to 1"),
        (dict(num_classes=-1), "num_classes=-1: expected a whole number of at least 0"),
        (dict(in_chans=0), "in_chans=0: expected a whole number of at least 1"),
        (dict(attention=123), "attention=123: expected a name, or one for each of the four stages"),
        (dict(features_only=True, out_indices=()), r"indices=\(\): expected stages from 0 to 3"),
        (dict(num_heads=(1, 2, 3, 8)), "num_heads: 3 heads of stage 3 do not divide its (256|320) channels"),
    ],
)
def test_wrong_options_of_every_family(name, options, message):
    with pytest.raises(VisionKitError, match=message):
        timm.create_model(name, **options)


def test_heads_that_rotary_positions_do_not_fit():
    with pytest.raises(VisionKitError, match="heads of 2 channels; rotary positions need a multiple of 4"):
        timm.create_model("mavit_tiny", num_heads=(32, 2, 4, 8))
