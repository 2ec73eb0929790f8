import pytest
import torch
import visionkit_kernels

from visionkit.errors import VisionKitError
from visionkit.ops import dispatch


def test_auto_takes_pytorch_on_a_cpu():
    with dispatch.use_kernels("auto"):
        assert dispatch.kernel("mala_attention", torch.zeros(1, 1, 4, 4)) is None


def test_choices():
    x = torch.zeros(1, 1, 4, 4)
    with dispatch.use_kernels("torch"):
        assert dispatch.kernel("mala_attention", x, x, x) is None
        assert "VISIONKIT_KERNELS=torch" in dispatch.explain()
        with pytest.raises(VisionKitError, match="one of auto, triton, torch"), dispatch.use_kernels("fast"):
            pass
        assert dispatch.kernel("mala_attention", x, x, x) is None


def test_triton_says_why_not(monkeypatch):
    x = torch.zeros(1, 1, 4, 130)
    with dispatch.use_kernels("triton"):
        with pytest.raises(VisionKitError, match="none is written yet"):
            dispatch.kernel("no_such_operation", x)
        monkeypatch.setattr(visionkit_kernels, "missing", lambda: "triton is not installed: pip install triton")
        with pytest.raises(VisionKitError, match="pip install triton"):
            dispatch.kernel("mala_attention", x, x, x)
        assert "pip install triton" in dispatch.explain()


def test_without_a_device(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with dispatch.use_kernels("auto"):
        assert dispatch.explain() == "PyTorch forms (Triton kernels need a CUDA device)"


def test_rocm_takes_pytorch(monkeypatch):
    """Its devices are called cuda and of high compute capability, and kernels hold PTX."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *args: (9, 4))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with dispatch.use_kernels("auto"):
        assert dispatch.explain() == "PyTorch forms (Triton kernels need a device of NVIDIA)"


def test_unknown_setting_is_one_line(monkeypatch):
    monkeypatch.setattr(dispatch, "_choice", "cuda")
    with pytest.raises(VisionKitError, match="VISIONKIT_KERNELS='cuda'"):
        dispatch.kernel("mala_attention", torch.zeros(1))
    assert "expected one of" in dispatch.explain()


def test_without_triton_a_kernel_says_so(monkeypatch):
    monkeypatch.setattr(visionkit_kernels, "missing", lambda: "triton is not installed: pip install triton")
    with pytest.raises(ImportError, match="pip install triton"):
        visionkit_kernels.mala_attention  # noqa: B018
