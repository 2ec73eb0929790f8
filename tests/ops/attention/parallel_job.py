"""Attention on several processes against one: ``python parallel_job.py PROCESSES PORT``; exits with 0 if equal.

With a third word, ``ring``: PyTorch's ring, on as many GPUs where there is one.
"""

import multiprocessing
import os
import sys
from functools import partial

import torch
import torch.distributed as dist
from ops.attention.explicit import qkv
from torch.distributed.device_mesh import init_device_mesh

from visionkit.errors import VisionKitError
from visionkit.ops import mala_attention, nala_attention, rotary_table_2d
from visionkit.ops.attention import attend
from visionkit.ops.attention.lawcat import lawcat_attention
from visionkit.ops.attention.linear import linear_attention
from visionkit.ops.attention.parallel import by_heads, by_ring, by_states, linear_by_states
from visionkit.ops.attention.softmax import softmax_attention

ROTARY = rotary_table_2d(4, 6, 8, dtype=torch.float64)


def own_share(tables):
    """Of tables of all tokens, those of the process's own."""
    return tuple(x.chunk(dist.get_world_size())[dist.get_rank()] for x in tables)


CASES = {
    "softmax by heads": (lambda *x: by_heads(softmax_attention, *x), softmax_attention),
    "causal softmax by heads": (
        lambda *x: by_heads(softmax_attention, *x, causal=True),
        lambda *x: softmax_attention(*x, causal=True),
    ),
    "lawcat by heads": (lambda *x: by_heads(lawcat_attention, *x), lawcat_attention),
    "linear by states": (linear_by_states, linear_attention),
    "causal linear by states": (
        lambda *x: linear_by_states(*x, causal=True),
        lambda *x: linear_attention(*x, causal=True),
    ),
    "causal means of relu by states": (
        lambda *x: linear_by_states(*x, causal=True, feature_map="relu", output="none"),
        lambda *x: linear_attention(*x, causal=True, feature_map="relu", output="none"),
    ),
    "mala, rotated, by states": (
        lambda *x: by_states("mala", *x, rotary=own_share(ROTARY)),
        lambda *x: mala_attention(*x, rotary=ROTARY),
    ),
    "nala, rotated, by states": (
        lambda *x: by_states("nala", *x, rotary=own_share(ROTARY)),
        lambda *x: nala_attention(*x, rotary=ROTARY),
    ),
    **{f"{name} by states": (partial(by_states, name), partial(attend, name)) for name in ("norm", "mala", "nala")},
}


def work(rank, processes, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    for name, (parallel, single) in CASES.items():
        whole = [x.requires_grad_() for x in qkv(n=24, heads=4)]
        expected = single(*whole)
        expected.square().sum().backward()
        mine = [x.detach().chunk(processes, 2)[rank].clone().requires_grad_() for x in whole]
        y = parallel(*mine)
        y.square().sum().backward()
        torch.testing.assert_close(y, expected.chunk(processes, 2)[rank], msg=lambda text, name=name: f"{name}: {text}")
        for part, x in zip(mine, whole):
            torch.testing.assert_close(
                part.grad, x.grad.chunk(processes, 2)[rank], msg=lambda text, name=name: f"{name} gradient: {text}"
            )
    mesh = init_device_mesh("cpu", (processes,))
    for causal in (True, False):  # causal on a CPU; float64
        try:
            by_ring(*whole, mesh=mesh, causal=causal)
        except VisionKitError as error:
            assert "use by_heads" in str(error)
        else:
            raise AssertionError("the ring tried what it cannot do")
    try:
        by_states("softmax", *whole)
    except VisionKitError as error:
        assert str(error) == "by_states: 'softmax' is not one of linear, norm, mala, nala; use by_heads"
    else:
        raise AssertionError("softmax has no state that adds up")
    dist.destroy_process_group()


def ring(rank, processes, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=processes)
    mesh = init_device_mesh("cuda" if on_gpu else "cpu", (processes,))
    whole = [x.float() for x in qkv(n=512, d=64)]
    if on_gpu:
        torch.cuda.set_device(rank)
        whole = [x.bfloat16().cuda() for x in whole]
    for causal in (False, True) if on_gpu else (False,):
        torch.testing.assert_close(by_ring(*whole, mesh=mesh, causal=causal), softmax_attention(*whole, causal=causal))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    count, port = int(sys.argv[1]), sys.argv[2]
    of_ring = sys.argv[3:] == ["ring"]
    context = multiprocessing.get_context("spawn" if of_ring else "fork")  # forked: one import for all
    workers = [context.Process(target=ring if of_ring else work, args=(rank, count, port)) for rank in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(any(worker.exitcode for worker in workers))
