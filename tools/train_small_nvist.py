"""Train the bundled small NViST, on a GPU in minutes or on a CPU in hours.

  python tools/train_small_nvist.py scenes --pool pool --seconds 540     # as many scenes as fit in that time
  python tools/train_small_nvist.py train --pool pool --minutes 50 --depths-alone --batch 16 --out depths.safetensors
  python tools/train_small_nvist.py train --pool pool --minutes 60 --init depths.safetensors --out small.safetensors

The scenes are those of datasets/synthesize_views.py, read and normalised as visionkit.MVImgNet reads them; they stay in
memory, the GPU's where there is one, which also renders them. Rates follow the clock, so that the run ends annealed
when its time is over. The weights so far are written ten times on the way; ``--init`` goes on from them.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visionkit.cli import Parser, run_command
from visionkit.devices import choose_device
from visionkit.errors import VisionKitError
from visionkit.files import beside, check_writable, write_text
from visionkit.nvs.cameras import pixel_rays
from visionkit.nvs.captures.scene import viewed_distances
from visionkit.nvs.data import fitted_view
from visionkit.nvs.frustum import density_of, depth_error, one_pixel_in_four, reach_of
from visionkit.nvs.metrics import psnr
from visionkit.nvs.model import NViST
from visionkit.nvs.mvimgnet import FAR_QUANTILE, NEAR_QUANTILE
from visionkit.nvs.outputs import check_targets
from visionkit.nvs.published import load_weights
from visionkit.nvs.weights import load_small, save_small

sys.path.append(str(Path(__file__).resolve().parents[1] / "datasets"))  # for synthesize_views, also in its processes

SIZE = (160, 90)
COMMON = dict(
    img_size=SIZE, decoder_patch_size=4, true_positions=True, background="learned", whole_view=False, lpips_weight=0,
    frustum_depths=64, num_samples=48, bf16=True,
)  # fmt: skip
SIZES = dict(
    gpu=dict(
        encoder_patch_size=5, encoder_embed_dim=224, encoder_depth=6, encoder_num_heads=7,
        decoder_embed_dim=224, decoder_depth=6, decoder_num_heads=7, decoder_output_dim=32, resolution=48,
        sigma_dim=8, rgb_dim=24, rgb_feature_dim=64,
    ),
    cpu=dict(
        encoder_patch_size=10, encoder_embed_dim=128, encoder_depth=4, encoder_num_heads=4,
        decoder_embed_dim=128, decoder_depth=4, decoder_num_heads=4, decoder_output_dim=16, resolution=32,
        sigma_dim=4, rgb_dim=12, rgb_feature_dim=32,
    ),
)  # fmt: skip
ARRAYS = ("images", "c2w", "focal", "near_far", "depths")
TESTS = "test_scenes.txt"
REPORTS = 10
REPORT_SCENES, REPORT_RAYS = 16, 500


def main() -> int:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    scenes = commands.add_parser("scenes", help="make scenes until the time is over")
    scenes.add_argument("--pool", type=Path, required=True, help="folder for the scenes")
    scenes.add_argument("--seconds", type=float, default=120)
    scenes.add_argument("--scenes", type=int, default=20000, help="number of scenes to stop at")
    scenes.add_argument(
        "--test-scenes", type=int, default=32, help="number of scenes of layouts that training never shows"
    )
    scenes.add_argument("--views", type=int, default=10)
    scenes.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    scenes.add_argument("--workers", type=int, help="number of processes (default: one a core, on a GPU one)")
    scenes.add_argument("--seed", type=int, default=0)
    train = commands.add_parser("train", help="train on the scenes")
    train.add_argument("--pool", type=Path, required=True)
    train.add_argument("--out", type=Path, default=Path("nvist_small.safetensors"))
    train.add_argument("--init", type=Path, help="weights to start from; parts that they lack start anew")
    train.add_argument("--depths-alone", action="store_true", help="train the frustum's depths only, without rays")
    train.add_argument("--size", choices=sorted(SIZES), help="size of the model (default: what the device can train)")
    train.add_argument("--minutes", type=float, default=5)
    train.add_argument("--batch", type=int, default=8, help="number of scenes in a step")
    train.add_argument(
        "--views", type=int, default=4, help="number of views of a scene in a step, the input view included"
    )
    train.add_argument("--rays", type=int, default=384, help="number of rays of a scene in a step")
    train.add_argument("--lr", type=float, default=6e-4)
    train.add_argument("--ema", type=float, default=0.998)
    train.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    train.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    return run_command(make_scenes if options.command == "scenes" else run_training, options)


def check_numbers(options: argparse.Namespace, **least: float) -> None:
    """Raises VisionKitError for an option that is given and below its least."""
    for name, number in least.items():
        value = getattr(options, name)
        if value is not None and not value >= number:  # so that nan is refused
            raise VisionKitError(f"--{name.replace('_', '-')} {value}: expected {number} or more")


def make_scenes(options: argparse.Namespace) -> int:
    """Fills the pool: arrays of all scenes, the test scenes first."""
    from stand_in import start_pool
    from synthesize_views import Settings, plan

    check_numbers(options, seconds=0.001, scenes=1, test_scenes=1, views=3, workers=1, seed=0)
    check_writable(options.pool / TESTS, "--pool")
    device = choose_device(options.device)
    started = time.perf_counter()
    settings = Settings(options.scenes, options.test_scenes, options.views, SIZE, options.seed)
    jobs = plan(settings)  # training scenes first; turned round, for the test scenes must not be missing
    jobs = [(*job, settings, device) for job in jobs[options.scenes :] + jobs[: options.scenes]]
    workers = options.workers or (multiprocessing.cpu_count() if kind_of(device) == "cpu" else 1)
    done, together = [], 4 * workers
    with start_pool(workers, _one_thread) as pool:
        for start in range(0, len(jobs), together):
            done += pool.map(_scene, jobs[start : start + together], chunksize=1)
            seconds = time.perf_counter() - started
            print(f"{len(done)} scenes, {seconds:.0f} s", flush=True)
            if seconds > options.seconds and len(done) > options.test_scenes:
                break
    write_pool(options.pool, dict(zip(ARRAYS, map(np.stack, zip(*done)))), options.test_scenes)
    print(f"{len(done)} scenes of {options.views} views in {time.perf_counter() - started:.0f} s")
    return 0


def write_pool(folder: Path, arrays: dict[str, np.ndarray], tests: int) -> None:
    """Writes the arrays, and last the number of test scenes, without which there is no pool: none is half another's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TESTS).unlink(missing_ok=True)
    for name, values in arrays.items():
        with beside(folder / f"{name}.npy") as temporary, open(temporary, "wb") as opened:
            np.save(opened, values)
    write_text(folder / TESTS, f"{tests}\n")


def _one_thread() -> None:
    torch.set_num_threads(1)


def _scene(job: tuple) -> tuple[np.ndarray, ...]:
    """One scene as the data set reads it: written as files, read back, normalised."""
    from synthesize_views import scene_folder, write_scene

    from visionkit.nvs.captures.colmap import read_colmap

    category, number, settings, device = job
    with tempfile.TemporaryDirectory() as out:
        write_scene((Path(out), category, number, settings, device))
        normal = read_colmap(scene_folder(Path(out), category, number), "images").normalised()
        images, cameras = zip(*(fitted_view(normal.scene, row, SIZE) for row in range(len(normal.scene))))
        depths = np.load(scene_folder(Path(out), category, number) / "depth.npy") * normal.scale
    c2w = np.stack([camera.c2w for camera in cameras]).astype(np.float32)
    focal = np.array([camera.focal for camera in cameras], np.float32)
    near_far = np.array([normal.near, normal.far], np.float32)
    return np.stack(images).transpose(0, 3, 1, 2), c2w, focal, near_far, depths.clip(max=60).astype(np.float16)


class Pool:
    """All scenes on a device."""

    def __init__(self, folder: Path, device: str) -> None:
        try:
            arrays = {name: torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ARRAYS}
            self.tests = int((folder / TESTS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise VisionKitError(
                f"--pool {folder}: no pool of scenes ({error}); make one: scenes --pool {folder}"
            ) from error
        near, far = arrays["near_far"][self.tests :].T
        self.near_far = [float(near.quantile(NEAR_QUANTILE)), float(far.quantile(FAR_QUANTILE))]
        distances = torch.stack([torch.from_numpy(viewed_distances(each)) for each in arrays["c2w"].numpy()])
        self.distance = float(distances[self.tests :].median())
        self.images, self.c2w, self.focal, self.depths = (
            arrays[name].to(device) for name in ("images", "c2w", "focal", "depths")
        )
        self.distances = distances.float().to(device)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, scenes: Tensor, views: Tensor) -> dict[str, Tensor]:
        """What NViST reads of scenes (B,) and their views (B, V), the input view first; see visionkit.nvs.data."""
        rows = scenes[:, None], views
        c2w, focal = self.c2w[rows], self.focal[rows]
        turn = c2w[:, :1, :, :3].mT
        distance = self.distances[scenes, views[:, 0]]
        place = turn @ (c2w[..., 3:] - c2w[:, :1, :, 3:])
        place[:, :, 2, 0] -= distance[:, None]
        near_far = torch.tensor(self.near_far, device=c2w.device).expand(len(scenes), 2)
        return dict(
            image=self.images[rows].float() / 255,
            depth=self.depths[rows].float(),
            c2w=torch.cat([turn @ c2w[..., :3], place], dim=-1),
            focal=focal,
            camera_params=torch.stack([distance, focal[:, 0, 1] / SIZE[0]], dim=-1),
            near_far=near_far,
        )


def run_training(options: argparse.Namespace) -> int:
    """Trains for so many minutes and writes the mean of the weights."""
    check_numbers(options, minutes=0.001, batch=1, views=1, rays=1, lr=0)
    check_targets([options.out])
    options.device = choose_device(options.device)
    torch.manual_seed(options.seed)
    pool = Pool(options.pool, options.device)
    kind = kind_of(options.device)
    size = SIZES[options.size or kind]
    config = dict(COMMON, **size, extra_rays=options.rays)
    model = NViST(**config)
    if options.init is not None:
        known = load_small(options.init)[0].state_dict()
        load_weights(model, {**model.state_dict(), **known}, str(options.init))
    scale = dict(near_far=pool.near_far, distance=pool.distance, centre="viewed")
    model = model.to(options.device).train()
    mean = [each.detach().clone() for each in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, fused=kind == "gpu", betas=(0.9, 0.98))
    millions = sum(each.numel() for each in mean) / 1e6
    print(
        f"{len(pool) - pool.tests} training scenes, {millions:.1f} M parameters, near and far {pool.near_far}",
        flush=True,
    )

    options.out.parent.mkdir(parents=True, exist_ok=True)
    started = told = time.perf_counter()
    step, passed = 0, 0.0
    while passed < 1:
        rate = options.lr * min(1, (step + 1) / 300) * (0.5 + 0.5 * math.cos(math.pi * passed)) + 1e-6
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = train_step(model, pool, optimizer, options)
        decay = min(options.ema, 1 - 1 / (step + 1))
        torch._foreach_lerp_(mean, list(model.parameters()), 1 - decay)
        step += 1
        now = time.perf_counter()
        passed = (now - started) / (60 * options.minutes)
        if now - told > 60 * options.minutes / REPORTS or passed >= 1:
            told = now
            with swapped(model, mean):
                score, error = evaluate(model, pool)
                save_small(options.out, model, dict(config, bf16=False), scale)
            seconds = time.perf_counter() - started
            print(
                f"{seconds:6.0f} s  step {step:6d}  loss {loss:.4f}  of unseen layouts: psnr {score:.2f}  "
                f"relative error of depth {error:.3f}",
                flush=True,
            )
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB after {step} steps")
    return 0


def kind_of(device: str) -> str:
    """``"gpu"`` of any GPU's name, as ``cuda:1``, else ``"cpu"``: the size of model that it can train."""
    return "gpu" if torch.device(device).type == "cuda" else "cpu"


def train_step(model: NViST, pool: Pool, optimizer: torch.optim.Optimizer, options: argparse.Namespace) -> float:
    """One step on random scenes, input views and targets, half the time in a mirror; its loss."""
    scenes = torch.randint(pool.tests, len(pool), (options.batch,), device=options.device)
    batch = pool.batch(scenes, choose_views(pool.images.shape[1], options))
    if torch.rand(()) < 0.5:
        batch = mirrored(batch)
    losses = dict(loss=depth_loss(model, batch)) if options.depths_alone else model(**batch, mode="loss")
    loss = sum(value for name, value in losses.items() if name.startswith("loss"))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
    optimizer.step()
    return float(loss.detach())


def depth_loss(model: NViST, batch: dict[str, Tensor]) -> Tensor:
    """How wrong the frustums of the input views are, at one pixel in four."""
    image, head = batch["image"][:, 0], model.frustum_head
    with torch.autocast(image.device.type, torch.bfloat16, enabled=model.bf16):
        predicted = head.predict(image, model.encoder(image)[:, 1:], batch["camera_params"])
    some, reach = one_pixel_in_four(), reach_of(batch["camera_params"])
    density = density_of(predicted[:, : head.depths][some].float(), reach)
    return depth_error(density, batch["depth"][:, 0][some], reach)


def mirrored(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The scenes with left and right exchanged; their cameras' x axes still point to the right of their images."""
    sign = torch.tensor([[1, -1, -1, -1], [-1, 1, 1, 1], [-1, 1, 1, 1]], device=batch["c2w"].device)
    return dict(batch, image=batch["image"].flip(-1), depth=batch["depth"].flip(-1), c2w=batch["c2w"] * sign)


def choose_views(count: int, options: argparse.Namespace) -> Tensor:
    """Views (B, V) of walks of ``count``; the first, the input, is of a walk's middle half, as people use it.

    For depths alone there is that one view, and it is any.
    """
    if options.depths_alone:
        return torch.randint(count, (options.batch, 1), device=options.device)
    order = torch.rand(options.batch, count, device=options.device)
    first = torch.randint(count // 4, count - count // 4, (options.batch, 1), device=options.device)
    return order.scatter(1, first, -1).argsort(dim=1)[:, : options.views]


@contextlib.contextmanager
def swapped(model: NViST, weights: list[Tensor]) -> Iterator[None]:
    """Inside, the model has other weights and is in evaluation mode."""
    kept = [each.detach().clone() for each in model.parameters()]
    set_weights(model.eval(), weights)
    try:
        yield
    finally:
        set_weights(model.train(), kept)


@torch.no_grad()
def set_weights(model: NViST, weights: list[Tensor]) -> None:
    """Copies tensors into the model's parameters."""
    for own, value in zip(model.parameters(), weights):
        own.copy_(value)


@torch.inference_mode()
def evaluate(model: NViST, pool: Pool) -> tuple[float, float]:
    """PSNR of random pixels, and the relative error of the input's depths, on the first test scenes.

    The middle view is the input, all others are targets.
    """
    count, pixels = pool.images.shape[1], SIZE[0] * SIZE[1]
    middle, device = count // 2, pool.images.device
    order = torch.tensor([middle, *(i for i in range(count) if i != middle)], device=device)
    pick = torch.randint(pixels, (REPORT_RAYS,), generator=torch.Generator().manual_seed(0)).to(device)
    scores, errors = [], []
    for number in range(min(pool.tests, REPORT_SCENES)):
        batch = pool.batch(torch.tensor([number], device=device), order[None])
        grids = model.represent(batch["image"][:, 0], batch["camera_params"])
        rays = [each[0, 1:].flatten(1, 2)[:, pick] for each in pixel_rays(batch["c2w"], batch["focal"], SIZE)]
        seen = model.render(grids, *(each.flatten(0, 1)[None] for each in rays), batch["near_far"]).rgb[0]
        truth = batch["image"][0, 1:].movedim(1, -1).flatten(1, 2)[:, pick]
        scores.append(psnr(seen.view_as(truth).clamp(0, 1), truth).mean())
        errors.append((grids.frustum.depth() / batch["depth"][0, 0] - 1).abs().mean())
    return float(torch.stack(scores).mean()), float(torch.stack(errors).mean())


if __name__ == "__main__":
    sys.exit(main())
