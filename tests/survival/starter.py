"""Starts `visionkit train` as often as it is asked to, in forked processes, so that libraries are loaded once.

Each line on stdin holds the arguments as JSON; the answer is the process's id, and its exit status once it has ended.
"""

import json
import os
import sys

import matplotlib.pyplot  # noqa: F401  what a stage imports on its way is loaded once, too
import sklearn.cluster  # noqa: F401
import sklearn.manifold  # noqa: F401
import torch
import torch.utils.tensorboard  # noqa: F401
from mmengine.runner import ValLoop
from reid import tiny  # noqa: F401  the backbone

from visionkit import cli, engine, reid  # noqa: F401
from visionkit.engine.loops import NamedLoadersTrainLoop
from visionkit.reid import stages  # noqa: F401


def start(job):
    torch.set_num_threads(1)
    if "die_at" in job:
        os.replace, os.unlink = die_at(job["die_at"], os.replace, os.unlink)
    if "stop_at" in job:
        stop_at(*job["stop_at"])
    with open(job["log"], "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os._exit(cli.main(job["arguments"]))


def die_at(number, *functions):
    """kill -9 before (even) or after (odd) the n/2-th call of any of the functions."""
    calls = [0]

    def counted(function):
        def call(*arguments, **options):
            calls[0] += 1
            mine = calls[0] == number // 2 + 1
            if mine and number % 2 == 0:
                os.kill(os.getpid(), 9)
            try:
                return function(*arguments, **options)
            finally:  # deleting what is not there also counts
                if mine:
                    os.kill(os.getpid(), 9)

        return call

    return map(counted, functions)


def stop_at(what, number):
    """SIGTERM inside the n-th training iteration or validation of the run."""
    cls, name = dict(iteration=(NamedLoadersTrainLoop, "run_iter"), validation=(ValLoop, "run_iter"))[what]
    function, calls = getattr(cls, name), [0]

    def call(*arguments):
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), 15)
        return function(*arguments)

    setattr(cls, name, call)


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        start(json.loads(line))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
