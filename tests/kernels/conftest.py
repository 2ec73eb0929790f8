import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh memory holds NaN, so that what a kernel forgets to write, or reads too early, is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
