"""Triton kernels of visionkit. Needs torch and triton alone, never visionkit.

Importing the package is cheap and works without triton; the first use of a kernel imports it.

| function | module |
|---|---|
| ``depthwise_conv`` | ``visionkit_kernels.depthwise`` |
| ``layer_norm`` | ``visionkit_kernels.norm`` |
| ``linear_attention``, ``mala_attention`` | ``visionkit_kernels.linear`` |
| ``march_rays`` | ``visionkit_kernels.march`` |
| ``gaussian_attention`` | ``visionkit_kernels.gaussian`` |
| ``newton_steps``, ``inverse`` | ``visionkit_kernels.matrices`` |
| ``nala_attention`` | ``visionkit_kernels.nala`` |
| ``rotary_2d`` | ``visionkit_kernels.rotary`` |
| ``sigmoid_attention`` | ``visionkit_kernels.sigmoid`` |
"""

import functools
import importlib
import importlib.util
from types import ModuleType

__version__ = "0.1.0"

MODULES = {
    "depthwise_conv": "depthwise",
    "gaussian_attention": "gaussian",
    "inverse": "matrices",
    "layer_norm": "norm",
    "linear_attention": "linear",
    "mala_attention": "linear",
    "march_rays": "march",
    "nala_attention": "nala",
    "newton_steps": "matrices",
    "rotary_2d": "rotary",
    "sigmoid_attention": "sigmoid",
}

__all__ = ["MODULES", "missing", "module", *MODULES]


@functools.cache
def missing() -> str | None:
    """What keeps the kernels from running here, or None."""
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install {package}"
    return None


def module(name: str) -> ModuleType:
    """The module that holds the kernel of that name."""
    return importlib.import_module(f"{__name__}.{MODULES[name]}")


def __getattr__(name: str) -> object:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if reason := missing():
        raise ImportError(f"visionkit_kernels.{name}: {reason}")
    return getattr(module(name), name)
