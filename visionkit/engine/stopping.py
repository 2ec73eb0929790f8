"""A clean end on SIGTERM: at once where nothing is lost by it, else after what must not be cut in two."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_reduce, is_distributed

from visionkit.signals import on_signals


class Interrupted(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt it passes by whoever catches every Exception."""


class _State:
    asked = False
    finishing = False


@contextmanager
def listening() -> Iterator[None]:
    """Inside, SIGTERM raises :class:`Interrupted`; in :func:`finishing` it is remembered for :func:`asked`."""
    _State.asked = _State.finishing = False
    with on_signals(_ask, signal.SIGTERM):
        yield


def _ask(signum: int, frame: Any) -> None:
    _State.asked = True
    if not _State.finishing:
        raise Interrupted


@contextmanager
def finishing(until_done: bool = True) -> Iterator[None]:
    """What runs inside is not cut by SIGTERM; with ``until_done=False``, a part of it that may be."""
    before, _State.finishing = _State.finishing, until_done
    try:
        if _State.asked and not until_done:
            raise Interrupted
        yield
    finally:
        _State.finishing = before


def asked() -> bool:
    """Whether any process was asked to stop. All processes must call this at the same places, and all agree."""
    if not is_distributed():
        return _State.asked
    flag = torch.tensor(int(_State.asked))
    all_reduce(flag, "max")
    return bool(flag)
