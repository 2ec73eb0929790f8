"""How far long work has come: a bar on a terminal, plain lines now and then in a log."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

SECONDS_A_LINE = 10


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[..., None]]:
    """Inside, the function that this yields, called with a number of steps (1), counts them out of ``total``."""
    if not sys.stderr.isatty():
        yield _lines(title, total)
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda steps=1: bar.advance(task, steps)


def _lines(title: str, total: int) -> Callable[..., None]:
    done, told = 0, time.monotonic()

    def advance(steps: int = 1) -> None:
        nonlocal done, told
        done, now = done + steps, time.monotonic()
        if now - told >= SECONDS_A_LINE and done < total:
            told = now
            print(f"{title}: {done} of {total}", flush=True)

    return advance
