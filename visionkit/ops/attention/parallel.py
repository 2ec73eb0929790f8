"""Attention over tokens that are shared out among processes.

Every process holds its own run of tokens of q, k and v, in order of rank, all runs of one length; each function gives
the outputs of the process's own tokens, and gradients flow through the exchange.

PyTorch's own ``torch.distributed.tensor.experimental.context_parallel`` passes the keys and values of softmax attention
round, see :func:`by_ring`; causal it knows CUDA kernels alone. The others run anywhere.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.nn import functional as collective
from torch.nn import functional as F

from visionkit.errors import VisionKitError
from visionkit.ops.attention._chunks import causal_linear
from visionkit.ops.attention._masks import wide
from visionkit.ops.attention.linear import EPS
from visionkit.ops.mala import elu_plus_one


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
        options: of the function; tensors with an axis of heads must be those of the process's own heads.

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


def linear_by_states(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, group: dist.ProcessGroup | None = None
) -> Tensor:
    """``linear_attention``, exactly, with one exchange of d (d + 1) numbers a head, whatever the number of tokens.

    Without a mask the states of all processes are summed; causal, those of the ranks before.

    Args:
        q, k: (B, H, N / P, D).
        v: (B, H, N / P, Dv).
        causal: key j is seen by query i only if j <= i.
        group: the processes; None for all.

    Returns:
        (B, H, N / P, Dv).
    """
    group = group or dist.group.WORLD
    dtype = v.dtype
    q, k, v = wide(q, k, v)
    q, k, v = elu_plus_one(q), elu_plus_one(k), F.pad(v, (0, 1), value=1.0)  # the last channel sums the weights
    state = k.mT @ v
    if causal:
        states = collective.all_gather(state, group)
        before = sum(states[: dist.get_rank(group)], torch.zeros_like(state))
        # every state stays on the graph, for the backward exchange needs all ranks
        before = before + 0 * sum(states)
        y = causal_linear(q, k, v) + q @ before
    else:
        y = q @ collective.all_reduce(state, group=group)
    return (y[..., :-1] / (y[..., -1:] + EPS)).to(dtype)


def _exchange(x: Tensor, share: int, gather: int, group: dist.ProcessGroup) -> Tensor:
    """Gives axis ``share`` away in equal parts, one to each process, and lines up what comes along axis ``gather``."""
    size = dist.get_world_size(group)
    parts = [part.contiguous() for part in x.chunk(size, dim=share)]
    received = collective.all_to_all([torch.empty_like(part) for part in parts], parts, group)
    return torch.cat(received, dim=gather)
