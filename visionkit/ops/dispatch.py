"""Which form of an operation runs: a Triton kernel or plain PyTorch.

``VISIONKIT_KERNELS`` in the environment, or [use_kernels] for a while:

- ``auto``: a kernel for CUDA tensors that it supports, PyTorch otherwise;
- ``triton``: a kernel, or an error that says why not;
- ``torch``: PyTorch always. Second derivatives need it: kernels know the first alone.
"""

import contextlib
import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad

from visionkit.errors import VisionKitError

CHOICES = ("auto", "triton", "torch")
VARIABLE = "VISIONKIT_KERNELS"
NO_DEVICE = "Triton kernels need a CUDA device"
AUTO_TYPES = (torch.bfloat16, torch.float16, torch.float32)  # float64 is for comparisons: PyTorch is as good

_loaded: dict[str, tuple[Callable, Callable]] = {}
_choice = os.environ.get(VARIABLE, "auto")


def kernel(name: str, *tensors: Tensor) -> Callable | None:
    """The kernel of an operation for these tensors, or None where the PyTorch form is to run.

    Raises:
        VisionKitError: an unknown choice; or ``triton`` was asked for and there is no kernel for these tensors.
    """
    if _choice == "torch" or (_choice == "auto" and not tensors[0].is_cuda):
        return None
    reason = _refusal(name, tensors)
    if reason is None:
        return _loaded[name][0]
    if _choice == "triton":
        raise VisionKitError(f"{VARIABLE}=triton: {name} has no kernel here: {reason}; use {VARIABLE}=auto")
    return None


@contextlib.contextmanager
def use_kernels(choice: str) -> Iterator[None]:
    """Inside, operations choose as ``auto``, ``triton`` or ``torch`` says.

    Raises:
        VisionKitError: another choice.
    """
    global _choice
    before, _choice = _choice, _checked(choice)
    try:
        yield
    finally:
        _choice = before


def explain() -> str:
    """One line for people: which form of the operations runs on this machine, and why."""
    try:
        _checked(_choice)
    except VisionKitError as error:
        return str(error)
    if _choice == "torch":
        return f"PyTorch forms ({VARIABLE}=torch)"
    reason = _machine_refusal()
    if _choice == "auto" and not torch.cuda.is_available():
        reason = reason or NO_DEVICE  # the interpreter stands in only where it is asked for
    if reason:
        return f"PyTorch forms ({reason})" if _choice == "auto" else f"none: {VARIABLE}=triton, but {reason}"
    import visionkit_kernels

    return f"Triton kernels ({VARIABLE}={_choice}): {', '.join(visionkit_kernels.MODULES)}; PyTorch for all else"


def _checked(choice: str) -> str:
    if choice not in CHOICES:
        raise VisionKitError(f"{VARIABLE}={choice!r}: expected one of {', '.join(CHOICES)}")
    return choice


def _refusal(name: str, tensors: tuple[Tensor, ...]) -> str | None:
    _checked(_choice)
    if _choice == "auto" and any(x.dtype not in AUTO_TYPES for x in tensors):
        return f"auto takes {', '.join(str(x).removeprefix('torch.') for x in AUTO_TYPES)}"
    if reason := _machine_refusal(tensors[0].device if tensors[0].is_cuda else None) or _use_refusal():
        return reason
    if not (tensors[0].is_cuda or _interpreted()):
        return "the tensors are not on a CUDA device"
    return _loaded[name][1](*tensors) if _load(name) else "none is written yet"


def _use_refusal() -> str | None:
    """What keeps a kernel, of which PyTorch knows first derivatives backwards alone, from what is being done."""
    if torch.jit.is_tracing() or _is_exporting():
        return "a traced or exported graph is to run without it"
    if torch.compiler.is_compiling():
        return None
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return "it has no forward-mode derivative and no rule for torch.func"
    return None


@torch.compiler.assume_constant_result  # torch.compile takes it to be true, up to torch 2.11 at least
def _is_exporting() -> bool:
    return torch.compiler.is_exporting()


# torch.compile cannot look into imports, and need not
@torch.compiler.assume_constant_result
def _load(name: str) -> bool:
    """Puts kernels' functions, and those that say what they refuse, into ``_loaded``; False for an unknown name.

    All at once, as torch.compile does not see what is put there after the first kernel of a graph.
    """
    import visionkit_kernels

    for each in visionkit_kernels.MODULES:
        if each not in _loaded:
            _loaded[each] = getattr(visionkit_kernels, each), visionkit_kernels.module(each).refuses
    return name in _loaded


@torch.compiler.assume_constant_result
def _machine_refusal(device: torch.device | None = None) -> str | None:
    """What keeps every kernel from running on this machine's device, the current one if none is named."""
    try:
        import visionkit_kernels
    except ImportError:
        return "visionkit_kernels is not on the path: install visionkit with pip"
    reason = visionkit_kernels.missing()
    if reason or _interpreted():
        return reason
    if not torch.cuda.is_available():
        return NO_DEVICE
    if torch.version.hip:  # which calls its devices cuda too, and knows no PTX
        return "Triton kernels need a device of NVIDIA"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "Triton kernels need a device of compute capability 8.0 or newer"
    return None


@torch.compiler.assume_constant_result
def _interpreted() -> bool:
    """Whether Triton's interpreter stands in for a device, as in the tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
