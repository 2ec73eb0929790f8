"""The ``visionkit`` command. Heavy modules are imported by the sub-command that needs them."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from visionkit import __version__
from visionkit.errors import VisionKitError
from visionkit.files import FULL, cannot_write
from visionkit.signals import on_signals

COMMANDS = {
    "train": ("visionkit.commands.train", "run the stages of a config"),
    "test": ("visionkit.commands.test", "evaluate a checkpoint on a config's target"),
    "index": ("visionkit.commands.index", "make or update a gallery index of a folder of images"),
    "search": ("visionkit.commands.search", "find the images of an index that look most like a query"),
    "prepare_capture": ("visionkit.commands.prepare_capture", "find the cameras of phone photos or of a video"),
    "render": ("visionkit.commands.render", "render new views of a photo, of each photo in a folder, or of a capture"),
    "view": ("visionkit.commands.view", "look at a capture's cameras and points in the browser"),
    "convert": ("visionkit.commands.convert", "turn a published backbone checkpoint into safetensors"),
    "doctor": ("visionkit.commands.doctor", "show what is installed and what will be used"),
}

INTERRUPTED = {
    "train": "interrupted; the same command goes on from the last checkpoint",
    "index": "interrupted; the same command goes on with the images that the index does not hold yet",
    "view": "stopped",
}

# What a machine lacks, by the words of the errors that come of it.
LACKS = {
    r"^RuntimeError: DataLoader worker|unable to \w+ shared memory": "a process that reads images ended, or had no "
    "room for a batch; give more memory (in a container /dev/shm above all), or take fewer workers or smaller batches",
    r"can't start new thread|Resource temporarily unavailable": "the system starts no more processes or threads; raise "
    "its limit (ulimit -u, in a container --pids-limit), or take fewer workers",
    r"MemoryError|out of memory|can't allocate memory|Cannot allocate memory": "memory is used up (of the GPU, where "
    "one works); take smaller batches or images or fewer workers, or give more",
}


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """End with exit status 2."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command.

    Returns:
        Exit status: 0; 2 after a wrong input, which is told in one line on stderr; 130 after Ctrl-C, 143 after SIGTERM,
        129 where the terminal was closed; 1 where whoever read the output has gone, or where ``doctor`` misses
        something.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not
            stream.reconfigure(errors="backslashreplace")  # paths may hold what the terminal's encoding cannot show
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells each user without a home where its cache lies
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        os.getcwd()
    except OSError:  # torch would end in a line about its own libraries
        print("error: the current folder no longer exists; change to another", file=sys.stderr)
        return 2
    parser = Parser("visionkit", description="Re-identification, new views, fast backbones.")
    parser.add_argument("--version", action="version", version=f"visionkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module_name, summary) in COMMANDS.items():
        if arguments[:1] == [name]:
            module = importlib.import_module(module_name)
            command = commands.add_parser(
                name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
            )
            module.add_arguments(command)
        else:
            commands.add_parser(name, help=summary, add_help=False)
    options = parser.parse_args(arguments)
    return run_command(importlib.import_module(COMMANDS[options.command][0]).run, options)


def run_command(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Call a command; a wrong input becomes one line and exit status 2."""
    try:
        with stoppable():
            status = run(options)
            print(end="", flush=True)  # here what is wrong with the output is still told in a line
            return status
    except VisionKitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        command = getattr(options, "command", None)  # a script of one command names none
        print(INTERRUPTED.get(command, "interrupted; what was unfinished is not kept"), file=sys.stderr)
        return 128 + (stop.args[0] if isinstance(stop, Terminated) else signal.SIGINT)
    except BrokenPipeError:
        _leave_output()
        return 1
    except (MemoryError, OSError, RuntimeError) as error:
        told = _told(error)
        if told is None:
            raise
        _leave_output()
        print(f"error: {told}", file=sys.stderr)
        return 2


def _told(error: Exception) -> str | None:
    """What is wrong with a path or with the machine, in one line; None where neither is."""
    if isinstance(error, OSError) and error.errno in FULL:
        return str(cannot_write(error.filename or "the output", error))
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path and its permissions"
    words = f"{type(error).__name__}: {error}"
    return next((lack for pattern, lack in LACKS.items() if re.search(pattern, words)), None)


def _leave_output() -> None:
    """What stdout does not take Python would try again to write when it ends."""
    try:
        print(end="", flush=True)
    except OSError:
        with suppress(OSError):  # a notebook's is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived; its argument is which."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM and a closed terminal end the work as Ctrl-C does: what is half written is cleared away."""
    numbers = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
        numbers.append(signal.SIGHUP)
    with on_signals(_terminate, *numbers):
        yield


def _terminate(signum: int, frame: object) -> None:
    raise Terminated(signum)


def run_tool(command: str) -> None:
    """Run one sub-command as a script of its own: ``tools/train.py`` is ``visionkit train``."""
    sys.exit(main([command, *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
