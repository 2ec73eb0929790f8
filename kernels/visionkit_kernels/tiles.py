"""Which tiles a kernel works in: its defaults, which compile everywhere, or what was found faster on a kind of device.

The finds lie in ``tiles.json`` beside this file, which [visionkit_kernels.tune] writes:
``{"sm_90": {"linear apply 64 x 64 bfloat16": {"ROWS": 128, "num_warps": 8}}}``.
"""

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import torch

FILE = Path(__file__).with_name("tiles.json")

_forced: dict[str, dict] | None = None
_asked: dict[str, dict] | None = None
_compiled_for = 90


def chosen(kernel: str, default: dict, dtype: torch.dtype, device: torch.device) -> dict:
    """The default sizes and launch options of a kernel, changed by what was found for such a device.

    Args:
        kernel: its name.
        default: all of them; ``D`` and ``DV`` are channels of a tile.
        dtype: of the operands.
        device: where it will run.
    """
    widths = " x ".join(str(default[name]) for name in ("D", "DV") if name in default)
    key = " ".join(filter(None, (kernel, widths, str(dtype).removeprefix("torch."))))
    if _asked is not None:
        _asked[key] = default
    return {**default, **_found(device).get(key, {})}


def _found(device: torch.device) -> dict[str, dict]:
    if _forced is not None:
        return _forced
    return read().get(architecture(device), {}) if device.type == "cuda" else {}


@functools.cache
def architecture(device: torch.device) -> str:
    """``sm_90`` for a device of compute capability 9.0."""
    return f"sm_{capability(device)}"


def capability(device: torch.device) -> int:
    """90 for 9.0; without a device that for which kernels are compiled, see [compiling_for]."""
    if device.type != "cuda":
        return _compiled_for
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def read() -> dict[str, dict[str, dict]]:
    """The file's content; nothing where there is none."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


@contextlib.contextmanager
def forced(finds: dict[str, dict]) -> Iterator[None]:
    """Inside, kernels take these finds and not the file's."""
    global _forced
    before, _forced = _forced, finds
    try:
        yield
    finally:
        _forced = before


@contextlib.contextmanager
def compiling_for(architecture: int) -> Iterator[None]:
    """Inside, kernels on tensors without a device are made as for this one; outside, as for 90."""
    global _compiled_for
    before, _compiled_for = _compiled_for, architecture
    try:
        yield
    finally:
        _compiled_for = before


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, dict]]:
    """Gives a dictionary in which the defaults of all kernels launched inside are written down."""
    global _asked
    before, _asked = _asked, {}
    try:
        yield _asked
    finally:
        _asked = before
