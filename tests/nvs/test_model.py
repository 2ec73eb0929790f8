"""NViST's parts on sizes of a few tokens."""

import pytest
import torch

from visionkit.errors import VisionKitError
from visionkit.nvs.cameras import pixel_rays
from visionkit.nvs.decoder import Decoder, fourier_features
from visionkit.nvs.encoder import MaskedAutoencoder, ViTEncoder, patchify, sincos_table_2d, unpatchify
from visionkit.nvs.model import MAEFineTuning, NViST
from visionkit.nvs.published import checkpoint_filter_fn, load_mae, load_weights
from visionkit.ops import march
from visionkit.ops.render import ray_edges

TINY = dict(
    img_size=(20, 10),
    encoder_embed_dim=16,
    encoder_depth=2,
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
    extra_rays=7,
    lpips_weight=0,
)


def scenes(batch=2, views=3, size=(20, 10)):
    generator = torch.Generator().manual_seed(0)
    c2w = torch.eye(3, 4).repeat(batch, views, 1, 1)
    c2w[..., 2, 3] = -1.2
    return dict(
        image=torch.rand(batch, views, 3, *size, generator=generator),
        c2w=c2w,
        focal=torch.full((batch, views, 2), 18.0),
        camera_params=torch.tensor([[1.2, 0.9]] * batch),
        near_far=torch.tensor([[0.3, 2.5]] * batch),
    )


@pytest.mark.parametrize("representation", ["vector_matrix", "triplanes", "CP"])
@pytest.mark.parametrize("conditioning", ["adaln", "adaln_zero", "concat"])
def test_every_variant_trains_all_its_parameters(representation, conditioning):
    torch.manual_seed(0)
    model = NViST(**TINY, representation=representation, camera_conditioning=conditioning, background="learned")
    losses = model(scenes=scenes(), mode="loss")
    sum(value for key, value in losses.items() if "loss" in key).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without <= {"encoder.norm.weight", "encoder.norm.bias"}  # NViST reads the tokens before this norm


@pytest.mark.parametrize(("option", "value"), [("jitter", "rays"), ("decoder_num_heads", 3)])
def test_an_option_that_cannot_be_is_told_before_training(option, value):
    """The one was taken for "ray", the other an error of PyTorch's at the first step."""
    with pytest.raises(VisionKitError, match=f"{option}={value!r}: expected"):
        NViST(**dict(TINY, **{option: value}))


def test_a_file_of_no_weights_is_named(tmp_path):
    torch.save(dict(epochs=3), tmp_path / "mae.pth")
    with pytest.raises(VisionKitError, match="mae.pth: holds a int"):
        NViST(**TINY, mae_checkpoint=str(tmp_path / "mae.pth"))


def test_predict_renders_every_view():
    views = NViST(**TINY).eval()(**scenes(), mode="predict")
    assert views.shape == (2, 3, 3, 20, 10) and 0 <= views.min() and views.max() <= 1


@pytest.mark.parametrize("representation", ["vector_matrix", "triplanes", "CP"])
@pytest.mark.parametrize("jitter", [None, "ray", "shared"])
def test_intervals_are_made_chunk_by_chunk_and_are_the_same(representation, jitter, monkeypatch):
    torch.manual_seed(0)
    model, made = NViST(**TINY, representation=representation).eval(), []
    monkeypatch.setattr(march, "ray_edges", lambda *args: made.append(ray_edges(*args)) or made[-1])
    batch, results = scenes(), []
    for model.chunk in (1000, 150):
        torch.manual_seed(1)
        with torch.no_grad():
            grids = model.represent(batch["image"][:, 0], batch["camera_params"])
            origins, directions = (x.flatten(1, 3) for x in pixel_rays(batch["c2w"], batch["focal"], (20, 10)))
            seen = model.render(grids, origins, directions, batch["near_far"], jitter=jitter)
        assert len(made) == 600 // model.chunk + (600 % model.chunk > 0)
        results.append((torch.cat(made, dim=1), seen))
        made.clear()
    (whole, seen), (parts, in_parts) = results
    assert torch.equal(whole, parts) and torch.allclose(seen.rgb, in_parts.rgb, atol=1e-6)


def test_adaln_zero_starts_as_identity_and_the_camera_matters_elsewhere():
    latent = torch.randn(1, 9, 16)
    for conditioning, same in (("adaln_zero", True), ("adaln", False), ("concat", False)):
        torch.manual_seed(1)
        decoder = Decoder(16, 8, 16, 2, 2, 8, 6, conditioning=conditioning)
        near, far = (decoder(latent, torch.tensor([[z, 1.0]]))[0] for z in (0.5, 2.0))
        assert torch.allclose(near, far) == same


def test_with_the_camera_as_a_token_keys_and_values_have_norms_of_their_own():
    """As released: q = LN(x), k = LN_k(x), v = LN_v(x) where tokens attend to themselves, see NViST's blocks.py."""
    torch.manual_seed(0)
    block = Decoder(16, 8, 16, 2, 2, 8, 6, conditioning="concat").double().blocks[1]
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, weights = torch.randn(1, 5, 16, dtype=torch.float64), dict(block.named_parameters())
    linear = lambda x, name: x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    q, k, v = (
        linear(norm(x, f"norm{n}"), f"attn.{to}").view(5, 2, 8) for n, to in (("1", "q"), ("_k", "k"), ("_v", "v"))
    )
    seen = torch.einsum("hij,jhd->ihd", (torch.einsum("ihd,jhd->hij", q, k) / 8**0.5).softmax(-1), v)
    expected = x + linear(seen.reshape(1, 5, 16), "attn.proj")
    expected = expected + linear(torch.nn.functional.gelu(linear(norm(expected, "norm2"), "mlp.fc1")), "mlp.fc2")
    assert torch.allclose(block(x, torch.randn(1, 8, 16).double(), None), expected, atol=1e-12)


def test_true_positions_give_every_token_a_code_of_its_own_plane():
    released = Decoder(16, 8, 16, 2, 2, 8, 12).decoder_pos_embed[0, 1:]
    true = Decoder(16, 8, 16, 2, 2, 8, 12, true_positions=True).decoder_pos_embed[0, 1:]
    assert released.shape == true.shape == (3 * 4 * 4 + 3 * 4, 16)
    assert len(true.unique(dim=0)) == len(true)
    column, row = true[:, :8], true[:, 8:]
    for plane in range(3):  # in a plane, tokens of one column share the column's half of the code
        cells = column[plane * 16 : plane * 16 + 16].view(4, 4, 8)
        assert torch.equal(cells, cells[:1].expand_as(cells))
        cells = row[plane * 16 : plane * 16 + 16].view(4, 4, 8)
        assert torch.equal(cells, cells[:, :1].expand_as(cells))
    cells = released[:16, :8].view(4, 4, 8)
    assert not torch.equal(cells, cells[:1].expand_as(cells))  # the released table drifts


def test_patchify_is_undone():
    images = torch.randn(2, 3, 20, 10)
    assert torch.equal(unpatchify(patchify(images, 5), 5, 4, 2), images)
    assert torch.equal(patchify(images, 5)[0, 1, :3], images[0, :, 0, 5])  # row-major, colour fastest


def test_position_codes_and_fourier_features():
    table = sincos_table_2d(8, 2, 3)[0]
    assert torch.equal(table[0], torch.zeros(8)) and table.shape == (7, 8)
    assert table[1 + 2, 0] == pytest.approx(torch.tensor(2.0).sin())  # the first channels code the column
    features = fourier_features(torch.tensor([0.25, 0.5]), 2)
    expected = torch.tensor([0.25, 0.5, 0.5**0.5, 1, 1, 0, 0.5**0.5, 0, 0, -1])
    assert torch.allclose(features, expected, atol=1e-6)


def test_mae_hides_the_share_it_says_and_scores_only_that():
    mae = MaskedAutoencoder((20, 10), embed_dim=16, depth=1, num_heads=2, decoder_embed_dim=16, decoder_depth=1)
    images, noise = torch.rand(1, 3, 20, 10), torch.arange(8.0)[None]
    loss, prediction, mask = mae.reconstruct(images, noise)
    assert mask.tolist() == [[0, 0, 1, 1, 1, 1, 1, 1]]
    error = (prediction - patchify(mae.normalise(images), 5)).square().mean(-1)
    assert loss.item() == pytest.approx(error[0, 2:].mean().item(), rel=1e-5)


def test_mae_stage_feeds_nvist():
    stage = MAEFineTuning((20, 10), embed_dim=16, depth=2, num_heads=2, decoder_embed_dim=16, decoder_depth=1)
    stage(scenes=scenes(), mode="loss")["loss"].backward()
    model = NViST(**TINY)
    model.load_source(stage.state_dict())
    assert torch.equal(model.encoder.blocks[1].attn.qkv.weight, stage.encoder.blocks[1].attn.qkv.weight)
    assert torch.equal(model.decoder.blocks[1].mlp.fc1.weight, stage.encoder.blocks[1].mlp.fc1.weight)
    torch.nn.init.normal_(stage.encoder.blocks[1].norm2.weight)
    model = NViST(**TINY, camera_conditioning="concat")
    model.load_source(stage.state_dict())
    assert torch.equal(model.decoder.blocks[1].norm2.weight, stage.encoder.blocks[1].norm2.weight)


def test_mae_of_other_patches_loads_all_but_the_projection():
    published = MaskedAutoencoder((32, 32), 16, 16, 2, 2, decoder_embed_dim=16, decoder_depth=1).state_dict()
    published["pos_embed"] = torch.zeros(1, 5, 16)
    mae = MaskedAutoencoder((20, 10), 5, 16, 2, 2, decoder_embed_dim=16, decoder_depth=1)
    assert load_mae(mae, published) == ["patch_embed.proj.weight", "decoder_pred.weight", "decoder_pred.bias"]
    with pytest.raises(VisionKitError, match="embed_dim"):
        load_mae(ViTEncoder((20, 10), 5, 8, 1, 2), {"unrelated": torch.zeros(3)})


def test_published_keys_that_are_never_computed_with_are_dropped():
    model = NViST(**TINY)
    extra = {f"module.{key}": value for key, value in model.state_dict().items()}
    for key in (
        "encoder.pos_embed",
        "encoder.mask_token",
        "decoder.decoder_pos_embed",
        "decoder.blocks.1.norm_k.weight",
    ):
        extra[f"module.{key}"] = torch.zeros(1)
    assert checkpoint_filter_fn(extra, model).keys() == model.state_dict().keys()
    load_weights(model, extra, "x.pth")


def test_the_norms_of_keys_are_computed_with_where_the_camera_is_a_token():
    state = NViST(**TINY, camera_conditioning="concat").state_dict()
    del state["decoder.blocks.1.norm_k.weight"]
    with pytest.raises(VisionKitError, match="norm_k"):
        load_weights(NViST(**TINY, camera_conditioning="concat"), state, "x.pth")
    with pytest.raises(VisionKitError, match="holds"):
        load_weights(NViST(**TINY), {**NViST(**TINY).state_dict(), "encoder.norm_k.weight": torch.zeros(1)}, "x.pth")


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(rgb_feature_dim=16), "another size"),
        (dict(decoder_depth=3), "has no"),
        (dict(decoder_depth=1), "does not have"),
    ],
)
def test_checkpoint_of_another_size_is_refused(change, words):
    state = NViST(**TINY).state_dict()
    with pytest.raises(VisionKitError, match=words) as error:
        load_weights(NViST(**{**TINY, **change}), state, "x.safetensors")
    assert "x.safetensors" in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        dict(representation="voxels"),
        dict(camera_conditioning="film"),
        dict(resolution=7),
        dict(img_size=(20, 11)),
        dict(sigma_dim=3),
        dict(background="blue"),
        dict(decoder_embed_dim=32),
    ],
)
def test_wrong_options_are_named(change):
    (name,) = change
    names = {"img_size": "img_size", "sigma_dim": "decoder_output_dim"}
    with pytest.raises(VisionKitError, match=names.get(name, name)):
        NViST(**{**TINY, **change})


def test_an_image_of_another_size_is_refused():
    with pytest.raises(VisionKitError, match="expected \\(20, 10\\)"):
        NViST(**TINY).represent(torch.zeros(1, 3, 10, 20), torch.zeros(1, 2))


def test_the_same_seed_gives_the_same_losses():
    first, second = [], []
    for out in (first, second):
        torch.manual_seed(3)
        model = NViST(**TINY)
        out += [model(scenes=scenes(), mode="loss")["loss_rgb"].item() for _ in range(2)]
    assert first == second and first[0] != first[1]  # other rays are drawn at every step


def test_bf16_trains_on_a_cpu():
    model = NViST(**TINY, bf16=True).train()
    losses = model(scenes=scenes(), mode="loss")
    losses["loss_rgb"].backward()
    assert losses["loss_rgb"].dtype == torch.float32 and model.encoder.cls_token.grad is not None
