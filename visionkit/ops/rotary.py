"""Rotary position encoding on a 2-D grid.

The first half of the channels turns with the row, the second with the column; neighbouring channels form the pairs that
are turned. Su et al., "RoFormer", arXiv 2104.09864; the 2-D form is that of MALA, arXiv 2507.00698.
"""

import torch
from torch import Tensor

from visionkit.errors import VisionKitError
from visionkit.ops import dispatch

Rotary = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]  # sin, cos and perhaps their pairs


def rotary_table_2d(
    height: int, width: int, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Sines and cosines of the angles of every cell of a grid.

    Args:
        height, width: size of the grid, in tokens.
        dim: channels of a head, a multiple of 4.
        device, dtype: device and type of the tables. Angles are computed in float32 in any case, as published weights
            saw them.

    Returns:
        sin and cos, each (height * width, dim), rows first.

    Raises:
        VisionKitError: ``dim`` is no multiple of 4.
    """
    if dim % 4:
        raise VisionKitError(f"dim={dim}: rotary encoding on a grid needs a head dimension that is a multiple of 4")
    frequency = 10000 ** -torch.linspace(0, 1, dim // 4, device=device, dtype=torch.float32)
    frequency = frequency[:, None].expand(-1, 2).flatten()  # exporters know no repeat_interleave
    rows = torch.arange(height, device=device)[:, None] * frequency
    columns = torch.arange(width, device=device)[:, None] * frequency
    rows = rows[:, None].expand(height, width, dim // 2)
    columns = columns[None].expand(height, width, dim // 2)
    angle = torch.cat([rows, columns], dim=-1).reshape(height * width, dim)
    return angle.sin().to(dtype), angle.cos().to(dtype)


def rotary_pairs(sin: Tensor, cos: Tensor) -> Tensor:
    """Both tables (N, dim) in one (N, dim): cos and sin of every pair of channels, which share an angle.

    A CPU and the kernels turn by it; given along as the third part of ``rotary=`` it is not made again on every call.
    """
    return torch.stack([cos[..., ::2], sin[..., ::2]], dim=-1).flatten(-2)


def rotary_2d(x: Tensor, sin: Tensor, cos: Tensor, pairs: Tensor | None = None) -> Tensor:
    """Turns every pair of neighbouring channels: (a, b) -> (a cos - b sin, b cos + a sin).

    Args:
        x: (..., N, dim).
        sin, cos: (N, dim), see [rotary_table_2d].
        pairs: [rotary_pairs] of them, if at hand.

    Returns:
        (..., N, dim), in the type of ``x``.
    """
    # torch.compile makes one kernel of the formula and what is around it
    if not torch.compiler.is_compiling() and (run := dispatch.kernel("rotary_2d", x, sin, cos)):
        return run(x, sin, cos, pairs)
    if _as_complex_numbers(x):
        return _turned_complex(x, rotary_pairs(sin, cos) if pairs is None else pairs)
    a, b = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([-b, a], dim=-1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)


def _as_complex_numbers(x: Tensor) -> bool:
    """On a CPU one complex product does it in one pass; compilers and exporters do better with the formula."""
    full = x.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"
    return full and not (torch.compiler.is_compiling() or torch.jit.is_tracing())


def _turned_complex(x: Tensor, pairs: Tensor) -> Tensor:
    if x.stride(-1) != 1 or any(stride % 2 for stride in (x.storage_offset(), *x.stride()[:-1])):
        x = x.contiguous()
    x, turn = (torch.view_as_complex(each.unflatten(-1, (-1, 2))) for each in (x, pairs.to(x.dtype).contiguous()))
    return torch.view_as_real(x * turn).flatten(-2)
