"""A small embedder and the synthetic people in memory, for trying ideas of re-identification on a CPU.

The trees are those of ``python datasets/synthesize_reid.py --out ROOT --scale small``.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit.files import beside
from visionkit.registry import DATASETS
from visionkit.reid.ranking import evaluate

HEIGHT, WIDTH = 64, 32
DOMAINS = ("Market1501", "DukeMTMCreID")


class Split(NamedTuple):
    """image (N, 3, 64, 32) uint8; pid, camid (N,)."""

    image: Tensor
    pid: Tensor
    camid: Tensor


def load_domain(root: str, name: str) -> dict[str, Split]:
    """Train, query and gallery of one domain."""
    splits = {}
    for split in ("train", "query", "gallery"):
        data = DATASETS.build(dict(type=f"visionkit.{name}", root=root, split=split))
        items = [data[i] for i in range(len(data))]
        images = [np.asarray(item["image"].convert("RGB").resize((WIDTH, HEIGHT))) for item in items]
        labels = [torch.tensor([int(item[key]) for item in items]) for key in ("pid", "camid")]
        splits[split] = Split(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), *labels)
    return splits


def add_people(parser: argparse.ArgumentParser) -> None:
    """The options ``--root`` and ``--cache`` of [load]."""
    parser.add_argument("--root", required=True, help="folder of the synthetic trees")
    parser.add_argument("--cache", metavar="NPZ", help="file to keep decoded images in")


def load(root: str, cache: str | None) -> dict[str, dict[str, Split]]:
    """Both domains; decoded images are kept in ``cache`` (.npz) where one is given."""
    if cache and Path(cache).exists():
        with np.load(cache) as stored:
            fields = lambda domain, split: (torch.from_numpy(stored[f"{domain}.{split}.{x}"]) for x in Split._fields)
            return {d: {s: Split(*fields(d, s)) for s in ("train", "query", "gallery")} for d in DOMAINS}
    domains = {name: load_domain(root, name) for name in DOMAINS}
    if cache:
        flat = {
            f"{domain}.{split}.{field}": value.numpy()
            for domain, splits in domains.items()
            for split, rows in splits.items()
            for field, value in rows._asdict().items()
        }
        with beside(cache) as temporary, open(temporary, "wb") as file:
            np.savez(file, **flat)
    return domains


class Embedder(nn.Module):
    """Four strided convolutions and a pooled feature: (B, 3, 64, 32) uint8 -> (B, 128)."""

    def __init__(self, width: int = 24, dim: int = 128) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 4 * width, dim]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False) for a, b in zip(sizes, sizes[1:])
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in sizes[1:])

    def forward(self, image: Tensor) -> Tensor:
        """See above."""
        x = image.float() / 64 - 2
        for convolution, norm in zip(self.convolutions, self.norms):
            x = norm(convolution(x)).relu()
        return x.mean((2, 3)) + x.amax((2, 3))


def augment(image: Tensor, generator: torch.Generator) -> Tensor:
    """Flips half of the images, shifts all by up to two pixels, changes brightness."""
    flip = torch.rand(len(image), generator=generator) < 0.5
    image = torch.where(flip[:, None, None, None], image.flip(-1), image).float()
    gain = 0.8 + 0.4 * torch.rand(len(image), 1, 1, 1, generator=generator)
    dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return (F.pad(image * gain, (2, 2, 2, 2), mode="replicate")[..., 2 + dy : 66 + dy, 2 + dx : 34 + dx]).clamp(0, 255)


def identity_batch(pid: Tensor, identities: int, each: int, generator: torch.Generator) -> Tensor:
    """Indices of ``each`` images of ``identities`` identities."""
    chosen = pid.unique()[torch.randperm(len(pid.unique()), generator=generator)[:identities]]
    rows = []
    for one in chosen:
        members = (pid == one).nonzero()[:, 0]
        rows.append(members[torch.randint(len(members), (each,), generator=generator)])
    return torch.cat(rows)


@torch.no_grad()
def embed(model: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Normalised features (N, D) of all images."""
    return F.normalize(torch.cat([model(part) for part in image.split(256)]), dim=-1)


def scores(features: Callable[[Tensor], Tensor], domain: dict[str, Split], **options: object) -> dict[str, float]:
    """mAP and rank-1 of a domain's test."""
    query, gallery = domain["query"], domain["gallery"]
    labels = [x.numpy() for x in (query.pid, query.camid, gallery.pid, gallery.camid)]
    result = evaluate(features(query.image), features(gallery.image), *labels, **options)
    return dict(mAP=round(result.mAP, 4), rank1=round(result.cmc[1], 4))
