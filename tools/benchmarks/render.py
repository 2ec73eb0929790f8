"""One 160x90 frame of 48 samples a ray by the full-size renderer, beside the plain formula evaluated in one piece.

The grids are those of the full-size model, 3 x 32 x 48 x 48 and 3 x 32 x 48, and its colour network has random weights.
There being no published weights, density shows what a trained field shows: solid things on a ground with empty space
around, as sums of Gaussians, which a vector-matrix holds exactly. ``psnr`` compares the two frames.
"""

import argparse
import math

import numpy as np
import torch
from benchmarks._measure import Timed, measure, timed

SIZE, SAMPLES, FOCAL, DISTANCE, NEAR_FAR = (160, 90), 48, 115.0, 0.6, (0.1, 1.4)
ROUNDS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tools/benchmark.py render``."""
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> list[dict]:
    """One row."""
    ours = measure(fast, options.seed, threads=options.threads)
    reference = measure(plain, options.seed, threads=options.threads)
    error = max(float(((ours.result - reference.result) ** 2).mean()), 1e-12)
    return [
        dict(
            job="one frame, 160x90, 48 samples",
            seconds=ours.seconds,
            peak_bytes=ours.peak_bytes,
            reference_seconds=reference.seconds,
            reference_bytes=reference.peak_bytes,
            cpu_seconds=ours.cpu_seconds,
            reference_cpu_seconds=reference.cpu_seconds,
            times_faster=reference.seconds / ours.seconds,
            psnr=-10 * math.log10(error),
        )
    ]


def scene(seed: int) -> tuple:
    """Renderer, planes, vectors, origins, directions, box."""
    from visionkit.nvs.cameras import Camera
    from visionkit.nvs.field import FieldRenderer

    torch.manual_seed(seed)
    renderer = FieldRenderer().eval()
    planes, vectors = torch.randn(3, 1, 32, 48, 48), torch.randn(3, 1, 32, 48, 1)
    cells = (torch.arange(48) + 0.5) / 48 * 2 - 1
    for plane in range(3):
        for channel in range(8):
            centre, width = torch.rand(3) - 0.5, 0.05 + 0.15 * torch.rand(3)
            bumps = (-((cells[:, None] - centre) / width).square() / 2).exp()
            planes[plane, 0, channel] = 60 * bumps[:, 1:2] * bumps[None, :, 0]
            vectors[plane, 0, channel, :, 0] = bumps[:, 2]
    planes[0, 0, :, :, :] -= 0.5  # empty space, as a ReLU leaves it
    camera = Camera(torch.eye(3, 4).double().numpy(), (FOCAL, FOCAL), SIZE)
    origins, directions = camera.rays()
    origins = origins - torch.tensor([0, 0, DISTANCE])
    box = torch.tensor([[-0.8] * 3, [0.8] * 3])
    return renderer, planes, vectors, origins[None], directions[None], box


def best(frame: object) -> Timed:
    """The quickest of some rounds after a first one."""
    with torch.inference_mode():
        frame()
        return min((timed(frame) for _ in range(ROUNDS)), key=lambda done: done.seconds)


def fast(seed: int) -> Timed:
    """As the model renders: dense density, colours only where they show."""
    from visionkit.ops.render import ray_edges, render_rays_in_chunks

    renderer, planes, vectors, origins, directions, box = scene(seed)

    def frame() -> np.ndarray:
        edges = ray_edges(*NEAR_FAR, SAMPLES, origins)
        field = renderer.field(planes, vectors, dense=True)
        return render_rays_in_chunks(field, origins, directions, edges, box, chunk=1024, min_weight=1e-4).rgb.numpy()

    return best(frame)


def plain(seed: int) -> Timed:
    """The formula: every sample's density and colour, all at once."""
    from visionkit.ops.render import composite_weights, ray_edges

    renderer, planes, vectors, origins, directions, box = scene(seed)

    def frame() -> np.ndarray:
        edges = ray_edges(*NEAR_FAR, SAMPLES, origins)
        middle = (edges[..., 1:] + edges[..., :-1]) / 2
        points = origins[:, :, None] + directions[:, :, None] * middle[..., None]
        points = ((points - box[0]) / (box[1] - box[0]) * 2 - 1).flatten(1, 2)
        field = renderer.field(planes, vectors)
        weights = composite_weights(field.density(points).view_as(middle), edges)
        ways = directions[:, :, None].expand(-1, -1, SAMPLES, -1).flatten(1, 2)
        return (weights[..., None] * field.colour(points, ways).view(*middle.shape, 3)).sum(dim=2).numpy()

    return best(frame)
