import pytest
import torch
from kernels.compare import DEVICE
from kernels.watch import watch


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh memory holds NaN, so that what a kernel forgets to write, or reads too early, is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    """Races and accesses outside of tensors are seen in every kernel that the interpreter runs."""
    if DEVICE == "cpu":
        watch(monkeypatch)
