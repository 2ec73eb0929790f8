"""Offsets beyond 2^31 elements."""

import pytest
from kernels.compare import DEVICE
from kernels.named import FAR, assert_reaches_far


@pytest.mark.skipif(DEVICE == "cuda", reason="is one of the tests on a device")
@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("apart", ["rows", "batch"])
def test_offsets_beyond_32_bits(name, apart):
    assert_reaches_far(name, apart)
