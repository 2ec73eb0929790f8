"""What the scripts that synthesise stand-ins share: random streams, processes, and refusals of one line."""

import argparse
import errno
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.pool import Pool
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np

Job, Result = TypeVar("Job"), TypeVar("Result")
MARKER = "SYNTHETIC.txt"


def stream(seed: int, *words: int) -> np.random.Generator:
    """The random stream of one purpose."""
    return np.random.default_rng([seed, *words])


def in_processes(
    make: Callable[[Job], Result],
    jobs: Iterable[Job],
    workers: int,
    begin: Callable[[], None] | None = None,
    chunksize: int = 1,
) -> Iterator[Result]:
    """What ``make`` returns for each job, in this process or from several in any order.

    Args:
        make: the function to call.
        jobs: the arguments of the calls, one each.
        workers: number of processes; 1 is this one.
        begin: called once in each process.
        chunksize: jobs that a process fetches at a time.
    """
    if workers == 1:
        if begin:
            begin()
        yield from map(make, jobs)
        return
    with start_pool(workers, begin) as pool:
        yield from pool.imap_unordered(make, jobs, chunksize)


def start_pool(workers: int, begin: Callable[[], None] | None) -> Pool:
    """Processes that call ``begin`` first, and to which no Ctrl-C comes: that is for this process."""
    with held_back(signal.SIGINT):  # they inherit it
        return multiprocessing.get_context("spawn").Pool(workers, begin)


@contextmanager
def held_back(what: signal.Signals) -> Iterator[None]:
    """A signal waits for the end, and processes that are started inside never get it. Windows knows no such thing."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting inside, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [what])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_place(out: Path, note: str) -> list[str]:
    """Refuse a folder that holds something else.

    Args:
        out: the folder of a stand-in.
        note: first line of its marker: what makes the folder's content.

    Returns:
        The marker's lines; none where the folder is empty or not there.
    """
    if out.exists() and not out.is_dir():
        fail(f"--out {out}: expected a folder, found a file; name another folder")
    if not out.is_dir() or not any(out.iterdir()):
        return []
    if not (out / MARKER).is_file():
        fail(f"--out {out}: not empty and without {MARKER}, so it may hold real data; name a new or empty folder")
    lines = (out / MARKER).read_text(encoding="utf-8").splitlines()
    if lines[:1] != [note]:
        fail(f"--out {out}: holds a stand-in of other settings or of another edition; delete it or name another folder")
    return lines


def fail(message: str) -> NoReturn:
    """End with one line and exit status 2."""
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def run(main: Callable[[], None], interrupted: str) -> None:
    """The command line; Ctrl-C ends in the line ``interrupted``, and what the disk refuses in one, too."""
    for stream in (sys.stdout, sys.stderr):
        if stream:  # None: it was closed
            stream.reconfigure(errors="backslashreplace")  # paths may hold what the terminal's encoding cannot show
    try:
        main()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        raise SystemExit(130) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            fail("the disk is full; free some space and give the same command again")
        if error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror}; check the path and its permissions")


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """See :func:`fail`."""
        fail(message)
