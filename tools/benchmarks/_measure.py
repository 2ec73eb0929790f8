"""Run a function in a process of its own, so that its peak memory is its own."""

import multiprocessing
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Timed(NamedTuple):
    """A result, and the seconds that it took: on the clock, and of all cores together."""

    result: Any
    seconds: float
    cpu_seconds: float


class Measured(NamedTuple):
    """The same, with the largest resident size of the process in bytes."""

    result: Any
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def timed(function: Callable[[], Any]) -> Timed:
    """Call a function and time it."""
    start, cpu = time.perf_counter(), time.process_time()
    result = function()
    return Timed(result, time.perf_counter() - start, time.process_time() - cpu)


def measure(function: Callable, *arguments: Any, threads: int) -> Measured:  # noqa: ANN401
    """Call a module-level function in a fresh process. Its arguments must be picklable.

    A function of which only a part is to be timed returns :class:`Timed`.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, function, arguments, threads))
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}; out of memory?") from None
    process.join()
    return answer


def _child(sender: Any, function: Callable, arguments: tuple, threads: int) -> None:  # noqa: ANN401
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        done = timed(lambda: function(*arguments))
    done = done.result if isinstance(done.result, Timed) else done
    sender.send(Measured(*done, peak_bytes()))


def peak_bytes() -> int:
    """The largest resident size of this process so far."""
    try:
        with open("/proc/self/status") as file:  # of this program alone, unlike getrusage's
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
