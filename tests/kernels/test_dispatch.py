from types import SimpleNamespace

import pytest
import torch
import visionkit_kernels
from kernels.compare import DEVICE
from torch.autograd import forward_ad

from visionkit.errors import VisionKitError
from visionkit.ops import dispatch, mala_attention
from visionkit.ops.attention.sigmoid import sigmoid_attention


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
    x = torch.zeros(1, 1, 4, 130, device=DEVICE)
    with dispatch.use_kernels("triton"):
        with pytest.raises(VisionKitError, match="none is written yet"):
            dispatch.kernel("no_such_operation", x)
        monkeypatch.setattr(visionkit_kernels, "missing", lambda: "triton is not installed: pip install triton")
        with pytest.raises(VisionKitError, match="pip install triton"):
            dispatch.kernel("mala_attention", x, x, x)
        assert "pip install triton" in dispatch.explain()


@pytest.mark.parametrize("name", ["mala", "linear", "nala", "sigmoid"])
def test_tensors_that_do_not_fit_together_are_refused(name):
    """A kernel would read beyond the end of the shorter one."""
    q, long, one_head = (torch.zeros(1, heads, n, 16, device=DEVICE) for heads, n in ((2, 8), (2, 12), (1, 8)))
    for k, v in ((q, long), (long, q), (one_head, one_head), (q[..., :8], q)):
        with dispatch.use_kernels("triton"), pytest.raises(VisionKitError, match="must agree"):
            dispatch.kernel(f"{name}_attention", q, k, v)
    with dispatch.use_kernels("triton"), pytest.raises(VisionKitError, match="one device"):
        dispatch.kernel(f"{name}_attention", q, q, q.to("meta"))


def test_tables_of_other_lengths_are_refused():
    q = torch.zeros(1, 2, 8, 16, device=DEVICE)
    table = torch.zeros(6, 16, device=DEVICE)
    with dispatch.use_kernels("triton"), pytest.raises(ValueError, match="rotary: expected tables"):
        mala_attention(q, q, q, rotary=(table, table))


def jvp(attention, *tensors):
    return torch.func.jvp(attention, tensors, tuple(torch.ones_like(x) for x in tensors))[1]


def dual(attention, *tensors):
    with forward_ad.dual_level():
        return attention(*(forward_ad.make_dual(x, torch.ones_like(x)) for x in tensors))


def grad(attention, *tensors):
    return torch.func.grad(lambda *x: attention(*x).sum())(*tensors)


def trace(attention, *tensors):
    return torch.jit.trace(attention, tensors)


def mapped(attention, *tensors):
    return torch.func.vmap(attention)(*(x[None] for x in tensors))


@pytest.mark.parametrize("use", [jvp, dual, grad, trace, mapped], ids=lambda use: use.__name__)
def test_what_kernels_cannot_do_is_left_to_pytorch(use):
    """Forward-mode derivatives through them were zero, silently."""
    tensors = [torch.randn(1, 2, 8, 16, device=DEVICE) for _ in range(3)]
    with dispatch.use_kernels("torch"):
        use(sigmoid_attention, *tensors)
    with dispatch.use_kernels("triton"), pytest.raises(VisionKitError, match="no forward-mode|traced or exported"):
        use(sigmoid_attention, *tensors)


def test_an_export_holds_no_kernel():
    class Attention(torch.nn.Module):
        def forward(self, q):
            return sigmoid_attention(q, q, q)

    q = torch.randn(1, 2, 8, 16, device=DEVICE)
    with dispatch.use_kernels("triton"), pytest.raises(VisionKitError, match="traced or exported"):
        torch.export.export(Attention(), (q,), strict=False)


def test_surplus_values_are_refused():
    q, long = torch.zeros(1, 2, 8, 16), torch.zeros(1, 2, 12, 16)
    with dispatch.use_kernels("torch"), pytest.raises(VisionKitError, match="each of the 8 keys, got 12"):
        sigmoid_attention(q, q, long)


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


def test_every_device_is_asked_for_itself(monkeypatch):
    """Of which the second is an old one, whatever the current one is."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(dispatch._loaded, "mala_attention", ("the kernel", lambda *tensors: None))
    old = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda x=None: (6, 1) if x == old else (9, 0))
    with dispatch.use_kernels("auto"):
        for device, expected in ((torch.device("cuda", 0), "the kernel"), (old, None)):
            tensor = SimpleNamespace(is_cuda=True, dtype=torch.float32, device=device)
            assert dispatch.kernel("mala_attention", *[tensor] * 3) == expected


@pytest.mark.parametrize("name", ["mala", "linear", "nala"])
def test_devices_for_which_triton_does_not_compile(name, monkeypatch):
    module = visionkit_kernels.module(f"{name}_attention")
    monkeypatch.setattr(module, "does_not_compile", lambda dtype, device: dtype in (torch.bfloat16, torch.float16))
    x = torch.zeros(1, 1, 4, 16)
    assert module.refuses(x, x, x) is None and "does not compile" in module.refuses(*[x.bfloat16()] * 3)


def test_unknown_setting_is_one_line(monkeypatch):
    monkeypatch.setattr(dispatch, "_choice", "cuda")
    with pytest.raises(VisionKitError, match="VISIONKIT_KERNELS='cuda'"):
        dispatch.kernel("mala_attention", torch.zeros(1))
    assert "expected one of" in dispatch.explain()


def test_without_triton_a_kernel_says_so(monkeypatch):
    monkeypatch.setattr(visionkit_kernels, "missing", lambda: "triton is not installed: pip install triton")
    with pytest.raises(ImportError, match="pip install triton"):
        visionkit_kernels.mala_attention  # noqa: B018
