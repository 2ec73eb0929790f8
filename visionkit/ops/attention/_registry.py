"""The table of mechanisms. None is imported before it is asked for."""

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from visionkit.checks import check_counts
from visionkit.errors import VisionKitError
from visionkit.ops.attention._masks import empty_output, in_blocks

MASKS = ("full", "causal", "window", "block")
_ALL = MASKS
_NO_WINDOW = ("full", "causal", "block")
_FULL = ("full", "block")


_functions: dict[str, Callable] = {}


@dataclass(frozen=True)
class Mechanism:
    """What is known of one mechanism.

    Attributes:
        name: as in ``attention="..."``.
        path: ``module:function``.
        masks: those of ``MASKS`` that it supports.
        complexity: of n tokens of d channels.
        source: arXiv id.
        learned: whether it has parameters of its own, see [parameters].
    """

    name: str
    path: str
    masks: tuple[str, ...]
    complexity: str
    source: str
    learned: bool = False

    def function(self) -> Callable:
        """``(q, k, v, *, ...)``."""
        _load(self.path)
        return _functions[self.path]

    def parameters(self, heads: int, head_dim: int) -> dict[str, Tensor]:
        """The mechanism's own learned tensors at their start: keyword arguments of its function."""
        if not self.learned:
            return {}
        module = importlib.import_module(self.path.split(":")[0])
        return module.parameters(heads, head_dim)


@torch.compiler.assume_constant_result  # torch.compile cannot look into imports, and need not
def _load(path: str) -> None:
    """Puts the function of ``module:function`` into ``_functions``."""
    if path not in _functions:
        module, name = path.split(":")
        _functions[path] = getattr(importlib.import_module(module), name)


def _own(
    name: str, masks: tuple[str, ...], complexity: str, source: str, learned: bool = False
) -> tuple[str, Mechanism]:
    path = f"visionkit.ops.attention.{name}:{name}_attention"
    return name, Mechanism(name, path, masks, complexity, source, learned)


def _plain(name: str, complexity: str, source: str) -> tuple[str, Mechanism]:
    return name, Mechanism(name, f"visionkit.ops.{name}:{name}_attention", _FULL, complexity, source)


_MECHANISMS = dict(
    [
        _own("softmax", _ALL, "n² d", "1706.03762"),
        _plain("mala", "n d²", "2507.00698"),
        _plain("gaussian", "n m² + n m d", "2207.03341"),
        _plain("nala", "n d²", "2506.21137"),
        _own("linear", _ALL, "n d²", "2006.16236"),
        _own("sigmoid", _ALL, "n² d", "2409.04431"),
        _own("softplus", _ALL, "n² d", "2501.13428"),
        _own("gaam", _FULL, "n d", "2401.11143", learned=True),
        _own("norm", _ALL, "n d²", "2210.10340"),
        _own("diag", ("full", "causal"), "n w d", "2210.10340"),
        _own("lightning", _NO_WINDOW, "n d²", "2401.04658"),
        _own("lawcat", _NO_WINDOW, "n d²", "2509.18467", learned=True),
        _own("aaren", ("causal",), "n d", "2405.13956", learned=True),
        _own("low_rank", _FULL, "n m d", "2312.08874", learned=True),
        _own("hyper", _NO_WINDOW, "n (b + s) d", "2310.05869"),
        _own("flex_prefill", _NO_WINDOW, "n² d at worst", "2502.20766"),
        _own("dhsa", _NO_WINDOW, "n² / c + n b d", "2510.24606"),
        _own("landmark", _NO_WINDOW, "n² d; n² / b with retrieval", "2305.16300", learned=True),
        _own("diff_qkv", _ALL, "n² d", "2501.13629", learned=True),
    ]
)


def attention_names() -> list[str]:
    """Names of all mechanisms."""
    return list(_MECHANISMS)


def mechanism(name: str) -> Mechanism:
    """A mechanism by its name.

    Raises:
        VisionKitError: no such mechanism.
    """
    if name not in _MECHANISMS:
        near = difflib.get_close_matches(name, _MECHANISMS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(_MECHANISMS)}"
        raise VisionKitError(f"attention={name!r}: no such mechanism; {hint}")
    return _MECHANISMS[name]


def attend(
    name: str, q: Tensor, k: Tensor, v: Tensor, *, mask: str = "full", window: int = 256, **options: object
) -> Tensor:
    """Calls a mechanism by its name.

    Args:
        name: one of ``attention_names()``.
        q, k, v: (B, H, N, D).
        mask: ``"full"``; ``"causal"`` (key j is seen by query i if j <= i); ``"window"`` (|i - j| <= window);
            ``"block"`` (i // window == j // window).
        window: window or block size in tokens, for these two masks.
        options: options of the mechanism, its learned tensors among them.

    Returns:
        (B, H, N, Dv), empty if the batch is, or the queries are.

    Raises:
        VisionKitError: no such mechanism, or one without that mask; queries, but not a key; a number out of range.
    """
    found = mechanism(name)
    if mask not in found.masks:
        raise VisionKitError(
            f"attention={name!r}: mask {mask!r} is not supported; choose one of {', '.join(found.masks)}"
        )
    if (y := empty_output(q, k, v, *options.values())) is not None:
        return y
    function = found.function()
    if mask == "causal" and found.masks != ("causal",):
        return function(q, k, v, causal=True, **options)
    if mask == "window":
        return function(q, k, v, window=window, **options)
    if mask == "block":
        check_counts("", 1, window=window)
        return in_blocks(function, q, k, v, window, **options)
    return function(q, k, v, **options)
