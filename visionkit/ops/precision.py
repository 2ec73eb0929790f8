"""In which type an operation computes."""

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """In which type layers take ``x``: its own, or that of autocast, which leaves float64 alone."""
    kind = x.device.type
    if x.dtype == torch.float64 or x.is_meta or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def types_agree(x: Tensor, weight: Tensor) -> bool:
    """Whether layers take ``x`` with such a weight: of one type, or under autocast."""
    return x.dtype == weight.dtype or (not x.is_meta and torch.is_autocast_enabled(x.device.type))
