"""A small synthetic classification task and a small vision transformer, for comparing attentions on a CPU.

The task: a 32 x 32 image holds one large shape of eight kinds and two small ones of any kind, all of random place,
size, turn and colour, on a noisy ground; say the kind of the large one. Chance is 12.5 %.
"""

import argparse
import functools
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from study import fit
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit.backbones.attention import AttentionLayer
from visionkit.engine.checkpoints import load_exactly, read_weights
from visionkit.files import beside, check_writable

KINDS = ("disc", "square", "triangle", "cross", "ring", "frame", "bar", "hexagon")
SIZE = 32
TEST = 2000  # images
# what each mechanism needs to be itself among 64 tokens
OPTIONS = {
    "diag": dict(block=16),
    "landmark": dict(block=8),
    "dhsa": dict(chunk=8, budget=16),
    "flex_prefill": dict(block=8, min_budget=8),
    "hyper": dict(block=16, samples=16, min_length=1),
}


@functools.cache
def make_shapes(count: int, seed: int, outlined: bool = False) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 32, 32) of mean about 0, and kinds (count,).

    Args:
        count: number of images.
        seed: seed of everything that is drawn.
        outlined: draw outlines on a bright ground instead: another domain of the same kinds.

    The same arguments give the same tensors, which nobody may change.
    """
    r = torch.Generator().manual_seed(seed)
    uniform = lambda *shape: torch.rand(*shape, generator=r)
    ground = 0.75 if outlined else 0.25
    image = ground + 0.2 * (uniform(count, 3, 1, 1) - 0.5) + 0.1 * torch.randn(count, 3, SIZE, SIZE, generator=r)
    axis = torch.arange(SIZE) + 0.5
    kinds = torch.randint(len(KINDS), (count,), generator=r)
    for part in range(3):
        large = part == 2  # drawn last, on top
        kind = kinds if large else torch.randint(len(KINDS), (count,), generator=r)
        radius = (7 + 4 * uniform(count) if large else 2.5 + uniform(count))[:, None, None]
        centre = radius[..., 0] + (SIZE - 2 * radius[..., 0]) * uniform(count, 2)
        turn = (uniform(count) * 2 * math.pi)[:, None, None]
        y, x = (axis[:, None] - centre[:, :1, None]) / radius, (axis - centre[:, 1:, None]) / radius
        x, y = x * turn.cos() - y * turn.sin(), x * turn.sin() + y * turn.cos()
        distance = _distances(x, y)[kind, torch.arange(count)]  # at most 0 inside, in radii
        if outlined:
            distance = distance.abs() - 0.12
        cover = torch.sigmoid(-distance * radius * 4)[:, None]
        colour = (0.45 * uniform(count, 3, 1, 1)) if outlined else 0.5 + 0.5 * uniform(count, 3, 1, 1)
        image = image * (1 - cover) + colour * cover
    return (image - 0.5) * 4, kinds


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Of every point to the border of every kind, (kinds, N, H, W)."""
    radius, square = (x**2 + y**2).sqrt(), torch.maximum(x.abs(), y.abs())
    corner = lambda n: torch.stack(
        [x * math.cos(2 * math.pi * i / n) + y * math.sin(2 * math.pi * i / n) for i in range(n)]
    ).amax(0)
    arm = lambda a, b: torch.maximum(a.abs() - 0.3, b.abs() - 0.95)
    return torch.stack(
        [
            radius - 0.9,
            square - 0.75,
            corner(3) - 0.5,
            torch.minimum(arm(x, y), arm(y, x)),
            (radius - 0.72).abs() - 0.2,
            (square - 0.6).abs() - 0.18,
            arm(x, y),
            corner(6) - 0.8,
        ]
    )


class Block(nn.Module):
    """A pre-norm block with the attention of a name."""

    def __init__(self, dim: int, heads: int, attention: str, options: dict) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = AttentionLayer(dim, heads, attention, **options)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TinyViT(nn.Module):
    """64 tokens of 4 x 4 pixels, a few blocks, the mean of the tokens."""

    def __init__(self, attention: str = "softmax", dim: int = 32, depth: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 4, stride=4)
        self.position = nn.Parameter(0.02 * torch.randn(1, (SIZE // 4) ** 2, dim))
        options = OPTIONS.get(attention, {})
        self.blocks = nn.ModuleList(Block(dim, heads, attention, options) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, len(KINDS))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, 32, 32) -> logits (B, 8)."""
        x = self.patch(image).flatten(2).mT + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def train(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    seconds: float,
    lr: float = 1e-3,
    batch: int = 64,
    loss=lambda model, image, kind: F.cross_entropy(model(image), kind),  # noqa: ANN001
    seed: int = 0,
) -> int:
    """Trains for so many CPU seconds; gives the steps. Each batch is turned and mirrored: a shape stays of its kind."""
    r = torch.Generator().manual_seed(seed)

    def batch_loss() -> Tensor:
        index = torch.randint(len(data[1]), (batch,), generator=r)
        turns, mirrored = torch.randint(4, (2,), generator=r).tolist()
        image = data[0][index].rot90(turns, (2, 3))
        return loss(model, image.flip(3) if mirrored % 2 else image, data[1][index])

    trained = (p for p in model.parameters() if p.requires_grad)
    return fit(trained, batch_loss, seconds, lr, decay=0.05, warm_up=50, clip=1.0)


def add_teacher(parser: argparse.ArgumentParser, seconds: float) -> None:
    """The options ``--teacher`` and ``--teacher-seconds`` of [trained_teacher]."""
    parser.add_argument("--teacher", metavar="FILE", help="safetensors of the softmax network; written if missing")
    parser.add_argument("--teacher-seconds", type=float, default=seconds)


def trained_teacher(path: str | None, seconds: float) -> TinyViT:
    """A softmax vision transformer trained on 6000 shapes; kept in ``path`` (safetensors) where one is given."""
    torch.manual_seed(0)
    model = TinyViT()
    if path and Path(path).exists():
        load_exactly(model, read_weights(path), path)
        return model
    if path:
        check_writable(path, "--teacher")
    train(model, make_shapes(6000, 0), seconds, 2e-3)
    if path:
        save_model(model, path)
    return model


def save_model(model: nn.Module, path: str) -> None:
    """Writes a whole file or none."""
    with beside(path) as temporary:
        save_file(model.state_dict(), temporary)


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of the images whose kind is told."""
    model.eval()
    right = sum((model(x).argmax(-1) == y).sum().item() for x, y in zip(data[0].split(250), data[1].split(250)))
    model.train()
    return right / len(data[1])
