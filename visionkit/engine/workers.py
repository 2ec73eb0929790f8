"""How the processes that load batches start and end."""

import atexit
import multiprocessing
import os
import signal
import sys
from multiprocessing.queues import Queue


def start_worker(worker_id: int) -> None:
    """Leave SIGTERM to the training process: a batch system sends it to every process of a job.

    Where a batch cannot be sent, for lack of shared memory, the worker ends: the training process notices that, but
    would wait for the batch for ever.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Queue._on_queue_feeder_error = staticmethod(_end)


def _end(error: Exception, batch: object) -> None:
    print(f"a batch cannot be sent: {error}", file=sys.stderr, flush=True)
    os._exit(1)


@atexit.register
def _end_workers() -> None:
    """Python would send them SIGTERM, which they leave alone, and wait for ever."""
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    if workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises an error where one was killed
    for process in workers:
        process.kill()
