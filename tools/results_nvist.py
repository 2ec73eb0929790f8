"""Make the results page of the small NViST: its scores on procedural scenes of unseen layouts, beside three baselines.

  python datasets/synthesize_views.py --out data/synthetic_views --scenes 320 --test-scenes 16 --views 10
  python tools/results_nvist.py --data data/synthetic_views --page docs/results/nvist.md

With --export CHECKPOINT the weights are first written from a checkpoint of configs/nvist_synthetic.py.
The middle view of each test scene is the input, all its other views are the targets.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from studies.about import about_run
from torch import Tensor
from torch.nn import functional as F

from visionkit.cli import Parser, run_command
from visionkit.files import check_writable, write_text
from visionkit.nvs.cameras import pixel_rays
from visionkit.nvs.losses import PerceptualLoss
from visionkit.nvs.metrics import psnr, ssim
from visionkit.nvs.mvimgnet import MVImgNet
from visionkit.nvs.pictures import save_picture, stacked, view_sheet
from visionkit.nvs.weights import SHIPPED, load_small, load_trained, save_small
from visionkit.progress import progress

PLANES = 24
MEAN_SCENES = 200
SHEET_SCENES, SHEET_PAIRS = 6, 3
NAMES = dict(
    nvist="**NViST small**",
    usual="the same, told the usual distance in place of the scene's",
    again="input view shown again",
    plane="input view warped on its best single depth plane",
    mean="mean of the training views",
)

BASELINES = "again", "plane", "mean"

Scene = dict[str, Tensor]


def main() -> int:
    """Score everything, then write the page."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a tree made by datasets/synthesize_views.py")
    parser.add_argument("--weights", default=str(SHIPPED), help="weights to score (default: the bundled small model's)")
    parser.add_argument("--export", metavar="CHECKPOINT", help="first write --weights from this checkpoint")
    parser.add_argument("--page", type=Path, default=Path("docs/results/nvist.md"))
    return run_command(run, parser.parse_args())


def run(options: argparse.Namespace) -> int:
    """Evaluate the model and the baselines on the test split."""
    check_writable(options.page, "--page")
    if options.export:
        export(Path(options.export), Path(options.weights))
    model, scale = load_small(options.weights)
    test = MVImgNet(options.data, "test", model.img_size, centre=scale["centre"])
    mean = mean_view(MVImgNet(options.data, "train", model.img_size, views=None))
    lpips = PerceptualLoss()
    methods: dict[str, Callable[[Scene], Tensor]] = dict(
        nvist=lambda scene: rendered(model, scene, scale["near_far"]),
        usual=lambda scene: rendered(model, told(scene, scale["distance"]), scale["near_far"]),
        again=lambda scene: scene["image"][:1].expand_as(scene["image"]),
        plane=best_plane,
        mean=lambda scene: mean.expand_as(scene["image"]),
    )
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    rows, shown = [], set(np.linspace(0, len(test) - 1, SHEET_SCENES).round().astype(int).tolist())
    with progress("scoring scenes", len(test)) as advance:
        for index in range(len(test)):
            scene = test[index]
            for name, method in methods.items():
                predicted = method(scene)
                scores[name].append(score(scene["image"][1:], predicted[1:], lpips if lpips.available else None))
                if name == "nvist" and index in shown:
                    rows.append(view_sheet(scene["image"], predicted, SHEET_PAIRS))
            advance()
    table = {
        name: {key: float(np.mean([row[key] for row in each])) for key in each[0]} for name, each in scores.items()
    }
    save(options, table, len(test), rows)
    return 0


def export(checkpoint: Path, path: Path) -> None:
    """Write the small file of a training checkpoint, with the running mean of its weights."""
    model, options, scale = load_trained(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_small(path, model, options, scale)


def score(target: Tensor, predicted: Tensor, lpips: PerceptualLoss | None) -> dict[str, float]:
    """Means over the views (V, 3, H, W) of one scene."""
    scores = dict(PSNR=psnr(predicted, target), SSIM=ssim(predicted, target))
    if lpips is not None:
        scores["LPIPS"] = lpips(predicted, target)
    return {name: float(values.mean()) for name, values in scores.items()}


@torch.inference_mode()
def rendered(model: torch.nn.Module, scene: Scene, near_far: list[float]) -> Tensor:
    """The model's views (V, 3, H, W) of a scene; the representation is computed once."""
    grids = model.represent(scene["image"][:1], scene["camera_params"][None])
    seen = model.render_views(grids, scene["c2w"][None], scene["focal"][None], torch.tensor([near_far]))
    return seen.rgb[0].movedim(-1, 1).clamp(0, 1)


def told(scene: Scene, distance: float) -> Scene:
    """The scene, its input camera said to stand at another distance from the scene's centre."""
    c2w = scene["c2w"].clone()
    c2w[:, 2, 3] += scene["camera_params"][0] - distance
    return dict(scene, c2w=c2w, camera_params=torch.stack([torch.tensor(distance), scene["camera_params"][1]]))


def mean_view(data: MVImgNet) -> Tensor:
    """(3, H, W): the mean over all views of up to MEAN_SCENES training scenes."""
    chosen = np.unique(np.linspace(0, len(data) - 1, MEAN_SCENES).round().astype(int))
    return torch.stack([data[int(index)]["image"].mean(dim=0) for index in chosen]).mean(dim=0)


def best_plane(scene: Scene) -> Tensor:
    """The input view as a picture on the plane, parallel to its image, that serves the scene's targets best.

    The plane is chosen by the targets themselves, which no method at work could do: an upper bound of such warps.
    """
    near, far = scene["near_far"].tolist()
    depths = 1 / torch.linspace(1 / near, 1 / far, PLANES)
    warps = [warped(scene, float(depth)) for depth in depths]
    return max(warps, key=lambda views: float(psnr(views[1:], scene["image"][1:]).mean()))


def warped(scene: Scene, depth: float) -> Tensor:
    """The input view on the plane at ``depth``, seen by all cameras: (V, 3, H, W). Beyond its edge, its edge."""
    height, width = scene["image"].shape[-2:]
    distance = float(scene["camera_params"][0])
    origins, directions = (rays[0] for rays in pixel_rays(scene["c2w"][None], scene["focal"][None], (height, width)))
    along = (depth - distance - origins[..., 2]) / directions[..., 2].clamp(min=1e-6)
    points = origins + directions * along[..., None]
    x = points[..., 0] / depth * scene["focal"][0, 0] / (width / 2)
    y = points[..., 1] / depth * scene["focal"][0, 1] / (height / 2)
    image = scene["image"][:1].expand(len(origins), -1, -1, -1)
    return F.grid_sample(image, torch.stack([x, y], dim=-1), padding_mode="border", align_corners=False)


def save(options: argparse.Namespace, table: dict[str, dict[str, float]], scenes: int, rows: list[np.ndarray]) -> None:
    """Write the page, its numbers as JSON and its picture."""
    page = options.page
    page.parent.mkdir(parents=True, exist_ok=True)
    machine = f"{torch.get_num_threads()} CPU thread(s)"
    meta = dict(about_run(), machine=machine, scenes=scenes, command=" ".join(["python", *sys.argv]))
    write_text(page.with_suffix(".json"), json.dumps(dict(meta=meta, rows=table), indent=1) + "\n")
    save_picture(stacked(rows), page.with_suffix(".jpg"))
    write_text(page, render(meta, table, page.with_suffix(".jpg").name))


def render(meta: dict, table: dict[str, dict[str, float]], picture: str) -> str:
    """The page in Markdown."""
    columns = list(table["nvist"])
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name, row in table.items():
        cells = [f"{row[key]:.2f}" if key == "PSNR" else f"{row[key]:.3f}" for key in columns]
        lines.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
    ahead = {key: table["nvist"][key] - max(table[name][key] for name in BASELINES) for key in columns}
    verdict = f"{ahead['PSNR']:+.2f} dB and {ahead['SSIM']:+.3f} SSIM against the best baseline of each column"
    missing = "" if "LPIPS" in columns else "\nLPIPS is left out: its weights were not available."
    return PAGE.format(table="\n".join(lines), verdict=verdict, missing=missing, picture=picture, **meta)


PAGE = """# The small NViST on procedural scenes

{scenes} scenes of layouts that training never shows; the middle view is the input, all others are targets. Means over
views, then over scenes. The model is told how far the input camera stands from what the cameras look at, which sets the
scene's scale; the best plane of each scene is chosen by its targets, in the baseline's favour.{missing}

{table}

{verdict} ([target](README.md): +2 dB).

![Six test scenes: the input view, then three pairs of a target view and what was rendered for it]({picture})

Each row is a scene: the input view, then three pairs of a target view and what was rendered for it. What the model is
and what it cannot do: [its card](../nvist_small.md).

Made by `{command}` on {date}, commit {commit}, {machine}, visionkit {visionkit}, torch {torch}.
"""

if __name__ == "__main__":
    sys.exit(main())
