"""The rule that fills parameters and inputs of the reference cases, and the comparison of digests.

A reference case holds what a published implementation computes for parameters and inputs that this rule makes from
names alone, so any implementation can be checked without weights.
"""

import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch

Check = tuple[str, torch.Tensor | float, dict | float, float]
Checks = Iterator[Check]


def rng(name: str) -> np.random.RandomState:
    """The legacy generator seeded by a name: its streams never change."""
    return np.random.RandomState(zlib.crc32(name.encode()))


def tensor(name: str, shape: list[int]) -> torch.Tensor:
    """A float32 tensor of standard normals that belongs to ``name``."""
    return torch.from_numpy(rng(name).standard_normal(tuple(shape)).astype(np.float32))


def fill(key: str, shape: list[int]) -> torch.Tensor:
    """The value of one entry of a state dict (float32; int64 for ``num_batches_tracked``)."""
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros(tuple(shape), dtype=torch.int64)
    x = rng(key).standard_normal(int(np.prod(shape))).reshape(tuple(shape))
    if last == "running_var":
        x = 1 + 0.1 * np.abs(x)
    elif last == "weight" and len(shape) >= 2:
        x = x / np.sqrt(np.prod(shape[1:]))
    elif last == "weight" and len(shape) == 1:
        x = 1 + 0.1 * x
    else:
        x = 0.1 * x
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


def fill_state_dict(shapes: Mapping[str, list[int]]) -> dict[str, torch.Tensor]:
    """Fill a whole state dict, given as published key -> shape. Kinds leave out what a constructor builds itself."""
    return {key: fill(key, shape) for key, shape in shapes.items()}


def relative_error(actual: torch.Tensor | float, digest: dict | float) -> float:
    """The worst deviation from a digest, in units of its std; relative for a scalar.

    ``inf`` where the shape differs or a value is not finite.
    """
    flat = torch.as_tensor(actual).detach().double().cpu()
    if not isinstance(digest, Mapping):
        return _scalar_error(flat, float(digest))
    if list(flat.shape) != list(digest["shape"]):
        return float("inf")
    if flat.numel() == 1:
        return _scalar_error(flat, float(digest["value"][0]))
    flat = flat.flatten()
    picked = flat[torch.as_tensor(digest["index"])]
    expected = torch.as_tensor(digest["value"], dtype=torch.float64)
    # a constant tensor has no spread to measure by; its own size serves then
    scale = digest["std"] or abs(digest["mean"]) or 1.0
    worst = max((picked - expected).abs().max().item(), abs(flat.mean().item() - digest["mean"])) / scale
    return worst if flat.isfinite().all() else float("inf")


def _scalar_error(actual: torch.Tensor, expected: float) -> float:
    if actual.numel() != 1 or not actual.isfinite().all():
        return float("inf")
    return abs(actual.item() - expected) / (abs(expected) or 1.0)
