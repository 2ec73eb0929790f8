"""Seeds of all random number generators, and their states."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derived_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers, with no relation between neighbours."""
    high, low = np.random.SeedSequence([int(part) for part in parts]).generate_state(2)
    return (int(high) << 31) ^ int(low)


def seed_everything(*parts: int) -> None:
    """Seed python, numpy and torch from several numbers (a run's seed, an epoch, a rank)."""
    seed = derived_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """The states of all random number generators, as tensors and numbers."""
    name, keys, *rest = np.random.get_state()
    return dict(
        python=random.getstate(),
        numpy=(name, keys.tolist(), *rest),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    )


def set_rng_state(state: dict[str, Any]) -> None:
    """The inverse of :func:`rng_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:  # of as many GPUs as there were then
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"][: torch.cuda.device_count()]])


@contextmanager
def own_seed(*parts: int) -> Iterator[None]:
    """Inside, the CPU's generators follow from several numbers; afterwards they are as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = derived_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
