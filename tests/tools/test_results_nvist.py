"""The baselines of NViST's results page."""

import json

import pytest
import results_nvist
import torch

from visionkit.engine.checkpoints import save_checkpoint
from visionkit.nvs.cameras import pixel_rays
from visionkit.nvs.model import NViST
from visionkit.nvs.weights import load_small


def painted(points):
    """A smooth picture on a plane, by place."""
    x, y = points[..., 0], points[..., 1]
    return torch.stack([0.5 + 0.4 * torch.sin(3 * x), 0.5 + 0.4 * torch.cos(4 * y), 0.5 + 0.3 * torch.sin(5 * (x + y))])


@pytest.fixture
def scene():
    """Three cameras before one painted plane at depth 0.9 of the first."""
    c2w = torch.eye(3, 4).repeat(3, 1, 1)
    c2w[:, 2, 3] = -0.6
    c2w[1, 0, 3], c2w[2, 1, 3], c2w[2, 2, 3] = 0.05, -0.04, -0.5
    focal = torch.full((3, 2), 40.0)
    origins, directions = (rays[0] for rays in pixel_rays(c2w[None], focal[None], (32, 24)))
    points = origins + directions * ((0.3 - origins[..., 2]) / directions[..., 2])[..., None]
    near_far = torch.tensor([0.3, 0.9 / (1 - 1 / 23 * 5)])
    return dict(
        image=painted(points).movedim(0, 1),
        c2w=c2w,
        focal=focal,
        camera_params=torch.tensor([0.6, 40 / 32]),
        near_far=near_far,
    )


def test_a_planar_scene_is_warped_exactly_at_its_depth(scene):
    views = results_nvist.warped(scene, 0.9)
    inner = (slice(None), slice(None), slice(6, -6), slice(6, -6))
    assert torch.allclose(views[inner], scene["image"][inner], atol=5e-3)
    assert not torch.allclose(results_nvist.warped(scene, 0.5)[inner], scene["image"][inner], atol=5e-2)


def test_another_distance_moves_the_frame_and_no_camera_against_another(scene):
    other = results_nvist.told(scene, 0.75)
    assert other["camera_params"].tolist() == pytest.approx([0.75, 40 / 32])
    assert other["c2w"][0, :, 3].tolist() == pytest.approx([0, 0, -0.75])
    assert torch.allclose(results_nvist.warped(other, 0.9), results_nvist.warped(scene, 0.9), atol=1e-5)


def test_the_best_plane_is_at_least_as_good_as_every_plane(scene):
    best = results_nvist.psnr(results_nvist.best_plane(scene)[1:], scene["image"][1:]).mean()
    near, far = scene["near_far"].tolist()
    for depth in (near, far):
        other = results_nvist.psnr(results_nvist.warped(scene, depth)[1:], scene["image"][1:]).mean()
        assert best >= other - 1e-4
    again = results_nvist.psnr(scene["image"][:1].expand(2, -1, -1, -1), scene["image"][1:]).mean()
    assert best > again


def test_a_checkpoint_is_exported_with_its_scale(tmp_path):
    options = dict(img_size=[20, 10], encoder_embed_dim=16, encoder_depth=1, encoder_num_heads=2, decoder_embed_dim=16)
    options.update(decoder_depth=2, decoder_num_heads=2, decoder_output_dim=8, sigma_dim=2, rgb_dim=6, resolution=6)
    options.update(lpips_weight=0)
    model = NViST(**options)
    meta = dict(
        model=json.dumps(dict(options, type="visionkit.NViST")), near_far=[0.1, 1.3], distance=0.5, centre="viewed"
    )
    save_checkpoint(dict(state_dict=model.state_dict(), meta=meta), tmp_path / "epoch_1.pth")
    results_nvist.export(tmp_path / "epoch_1.pth", tmp_path / "new" / "small.safetensors")
    again, scale = load_small(tmp_path / "new" / "small.safetensors")
    assert scale == dict(near_far=[0.1, 1.3], distance=0.5, centre="viewed")
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.half().float())


def test_the_page_names_the_gap_to_the_best_baseline():
    rows = [(20.0, 0.8), (19.0, 0.78), (17.0, 0.7), (17.5, 0.6), (15.0, 0.75)]
    table = {name: dict(PSNR=p, SSIM=s) for name, (p, s) in zip(results_nvist.NAMES, rows)}
    meta = dict(scenes=3, command="c", date="d", commit="x", machine="m", visionkit="v", torch="t")
    page = results_nvist.render(meta, table, "nvist.jpg")
    assert (
        "+2.50 dB and +0.050 SSIM" in page
        and "LPIPS is left out" in page
        and "| **NViST small** | 20.00 | 0.800 |" in page
    )
