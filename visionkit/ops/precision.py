"""In which type an operation computes: its tensors' or autocast's, or one whose digits suffice whatever these are."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """In which type layers take ``x``: its own, or that of autocast, which leaves float64 alone."""
    kind = x.device.type
    if x.dtype == torch.float64 or x.is_meta or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def types_agree(x: Tensor, *weights: Tensor) -> bool:
    """Whether layers take ``x`` with such weights: of one type, or under autocast."""
    one = all(weight.dtype == x.dtype for weight in weights)
    return one or (not x.is_meta and torch.is_autocast_enabled(x.device.type))


def wide(*tensors: Tensor) -> list[Tensor]:
    """Half-precision tensors as float32, others as they are: sums over many tokens need the digits."""
    return [x if x.dtype == torch.float64 else x.float() for x in tensors]


def without_autocast(x: Tensor) -> AbstractContextManager:
    """No automatic casts on the device of ``x``; the meta device knows none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Inside, products on the device of ``x`` keep the digits that a ranking needs: no autocast, and no TF32 on a GPU.

    Programs that train ask torch for both, for all products at once.
    """
    products = torch.backends.cuda.matmul
    before, products.fp32_precision = products.fp32_precision, "ieee"
    try:
        with without_autocast(x):
            yield
    finally:
        products.fp32_precision = before
