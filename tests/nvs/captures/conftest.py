import pytest
import torch  # noqa: F401  before pycolmap: the other way round the heap breaks when matplotlib writes a picture

pycolmap = pytest.importorskip("pycolmap")
pycolmap.logging.minloglevel = 3
