"""Attention over tokens that are shared out among processes.

Every process holds its own run of tokens of q, k and v, in order of rank, all runs of one length; each function gives
the outputs of the process's own tokens, and gradients flow through the exchange.

PyTorch's own ``torch.distributed.tensor.experimental.context_parallel`` passes the keys and values of softmax attention
round, see :func:`by_ring`; causal it knows CUDA kernels alone. The others run anywhere.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.nn import functional as collective
from torch.nn import functional as F

from visionkit.errors import VisionKitError
from visionkit.ops.attention._chunks import causal_linear
from visionkit.ops.attention.linear import FEATURE_MAPS, check_form, rows, with_ones
from visionkit.ops.mala import mala_rows
from visionkit.ops.nala import nala_rows
from visionkit.ops.precision import wide, without_autocast


def by_heads(
    function: Callable,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    **options: object,
) -> Tensor:
    """Any mechanism, exactly: each process exchanges tokens for heads, attends its heads over all tokens, and back.

    Jacobs et al., DeepSpeed Ulysses, 2023, arXiv 2309.14509. Four all-to-all exchanges of n d / P numbers.

    Args:
        function: ``(q, k, v, *, ...)`` of this library, e.g. ``softmax_attention``.
        q, k, v: (B, H, N / P, D), H a multiple of the number of processes P.
        group: the processes; None for all.
        options: options of the function; tensors with an axis of heads must be those of the process's own heads.

    Returns:
        (B, H, N / P, Dv).

    Raises:
        VisionKitError: heads that cannot be shared out.
    """
    group = group or dist.group.WORLD
    size = dist.get_world_size(group)
    if q.shape[1] % size:
        raise VisionKitError(f"{q.shape[1]} heads cannot be shared by {size} processes; use a divisor of the heads")
    q, k, v = (_exchange(x, 1, 2, group) for x in (q, k, v))
    return _exchange(function(q, k, v, **options), 2, 1, group)


@torch.no_grad()
def by_ring(q: Tensor, k: Tensor, v: Tensor, *, mesh: DeviceMesh, causal: bool = False) -> Tensor:
    """``softmax_attention``, exactly, by PyTorch's context parallelism: keys and values pass round a ring.

    Liu et al., Ring Attention with Blockwise Transformers, 2023, arXiv 2310.01889. Other than above, q, k and v are
    whole and alike in every process, and so is the output: each attends its share of the queries. For training, put
    PyTorch's context around the whole model, so that activations are shared out too; here no gradient flows.

    Args:
        q, k, v: (B, H, N, D), N a multiple of twice the number of processes; on CUDA devices in half precision,
            on a CPU not in float64.
        mesh: the devices, e.g. ``init_device_mesh("cuda", (4,))``.
        causal: key j is seen by query i only if j <= i; on CUDA devices only.

    Returns:
        (B, H, N, D).

    Raises:
        VisionKitError: causal on other devices; float64.
    """
    if causal and mesh.device_type != "cuda":
        raise VisionKitError(f"by_ring: PyTorch's causal ring needs CUDA devices, not {mesh.device_type}; use by_heads")
    if q.dtype == torch.float64:  # PyTorch 2.14 returns the batch cut and the tokens doubled
        raise VisionKitError("by_ring: PyTorch's ring has no float64; convert to float32 or use by_heads")
    from torch.distributed.tensor.experimental import context_parallel
    from torch.distributed.tensor.experimental._attention import context_parallel_unshard

    share = [x.clone() for x in (q, k, v)]  # cut to the process's share in place
    with context_parallel(mesh, buffers=share, buffer_seq_dims=[2, 2, 2]):
        y = F.scaled_dot_product_attention(*share, is_causal=causal)
        return context_parallel_unshard(mesh, [y], [2])[0]


def by_states(
    name: str, q: Tensor, k: Tensor, v: Tensor, *, group: dist.ProcessGroup | None = None, **options: object
) -> Tensor:
    """A linear mechanism, exactly, with one exchange of its state, whatever the number of tokens.

    All that such a mechanism needs of keys and values are means over the tokens: d (d + 1) numbers a head for
    ``linear``, d² for ``norm``, d (d + 2) for ``mala`` and 2 d (d + 1) for ``nala``.

    Args:
        name: ``"linear"``, ``"norm"``, ``"mala"`` or ``"nala"``.
        q, k: (B, H, N / P, D).
        v: (B, H, N / P, Dv).
        group: the processes; None for all.
        options: options of the mechanism, but for windows, gates and branches; ``rotary`` is that of the process's own
            tokens.

    Returns:
        (B, H, N / P, Dv).

    Raises:
        VisionKitError: a mechanism without such a state.
    """
    if name not in _BY_STATES:
        raise VisionKitError(f"by_states: {name!r} is not one of {', '.join(_BY_STATES)}; use by_heads")
    return _BY_STATES[name](q, k, v, group=group or dist.group.WORLD, **options)


def linear_by_states(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    feature_map: str = "elu",
    output: str = "sum",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """``linear_attention`` with one exchange of its state, d (d + 1) numbers a head.

    Without a mask the states of all processes are summed; causal, those of the ranks before.

    Args:
        q, k: (B, H, N / P, D).
        v: (B, H, N / P, Dv).
        causal: key j is seen by query i only if j <= i.
        feature_map, output: options of ``linear_attention``.
        group: the processes; None for all.

    Returns:
        (B, H, N / P, Dv).

    Raises:
        VisionKitError: an unknown ``feature_map`` or ``output``.
    """
    check_form(feature_map, output)
    group = group or dist.group.WORLD
    dtype, n, rank = v.dtype, k.shape[-2], dist.get_rank(group)
    with without_autocast(v):  # as causal_linear
        q, k, v = wide(q, k, v)
        q, k, v = FEATURE_MAPS[feature_map](q), FEATURE_MAPS[feature_map](k), with_ones(v, output)
        if not causal:
            (state,) = _means_of_all(k.mT @ v / n, group=group)
            return rows(q @ state, n * dist.get_world_size(group), output).to(dtype)
        states = collective.all_gather(k.mT @ v, group)
        before = sum(states[:rank], torch.zeros_like(states[0]))
        # every state stays on the graph, for the backward exchange needs all ranks
        before = before + 0 * sum(states)
        seen = torch.arange(rank * n + 1, rank * n + n + 1, dtype=q.dtype, device=q.device)[:, None]
        return rows((causal_linear(q, k, v) + q @ before) / seen, seen, output).to(dtype)


def _by_means(
    function: Callable, q: Tensor, k: Tensor, v: Tensor, *, group: dist.ProcessGroup, **options: object
) -> Tensor:
    return function(q, k, v, share=partial(_means_of_all, group=group), **options).to(v.dtype)


_BY_STATES = dict(
    linear=linear_by_states,
    norm=partial(linear_by_states, output="rms"),
    mala=partial(_by_means, mala_rows),
    nala=partial(_by_means, nala_rows),
)


def _means_of_all(*means: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    """Means over the tokens of all processes, (B, H, ...) each, from those over the own ones, in one exchange."""
    joined = torch.cat([x.flatten(2) for x in means], dim=-1)
    joined = collective.all_reduce(joined, group=group) / dist.get_world_size(group)
    parts = joined.split([x.shape[2:].numel() for x in means], dim=-1)
    return [part.reshape(x.shape) for part, x in zip(parts, means)]


def _exchange(x: Tensor, share: int, gather: int, group: dist.ProcessGroup) -> Tensor:
    """Gives axis ``share`` away in equal parts, one to each process, and joins what arrives along axis ``gather``."""
    size = dist.get_world_size(group)
    parts = [part.contiguous() for part in x.chunk(size, dim=share)]
    received = collective.all_to_all([torch.empty_like(part) for part in parts], parts, group)
    return torch.cat(received, dim=gather)
