"""The backbones as graphs: traced, exported, compiled without a break, and on several processes."""

import pytest
import timm
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import visionkit.backbones  # noqa: F401

THIN = dict(dims=(32, 32, 64, 64), num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 1), num_classes=5)
NAMES = ["mavit_tiny", "nalaformer_tiny", "soft_tiny", "soft_norm_tiny"]


@pytest.fixture(params=NAMES)
def model(request):
    torch.manual_seed(0)
    return timm.create_model(request.param, **THIN).eval()


def test_a_trace_is_one_graph_for_any_batch(model):
    traced = torch.jit.trace(model, torch.randn(2, 3, 64, 64))  # which traces twice and compares
    other = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(traced(other), model(other))


def test_an_export_takes_any_batch(model):
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes=batch)
    other = torch.randn(3, 3, 64, 96)
    torch.testing.assert_close(program.module()(other), model(other), atol=1e-5, rtol=1e-4)


def test_the_compiler_finds_no_break(model):
    image = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(image), model(image), atol=1e-5, rtol=1e-4)


def test_every_parameter_takes_part_when_processes_train_together(model, tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        together = DistributedDataParallel(model.train())
        for _ in range(2):  # the second step fails where the first left a parameter out
            together(torch.randn(2, 3, 64, 64)).sum().backward()
    finally:
        distributed.destroy_process_group()
    assert all(p.grad is not None for p in model.parameters())
