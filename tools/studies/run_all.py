"""Run all studies side by side, one thread each, and keep what they find in one file.

python tools/studies/run_all.py --seconds 120 --processes 13 --out docs/results

The file is OUT/studies.json, written again whenever a study has found something, so that a stopped run keeps what it
had; sinks.png beside it shows where sinks are. ``--seconds`` is the CPU time of one training in compare_attention.py,
and of each other process in all; train_experts.py, which starts first, takes 1.6 times as long. With 13 processes
everything takes little more than twice the seconds.
"""

import argparse
import importlib
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import small_reid
from about import ROOT
from shapes import TEST, make_shapes
from study import run_study, write_json

from visionkit.cli import run_command
from visionkit.errors import VisionKitError
from visionkit.ops.attention import attention_names


class Task(NamedTuple):
    """One process: a study with these arguments, once the tasks of ``after`` are done."""

    study: str
    part: str
    arguments: list[str]
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Unique."""
        return f"{self.study} {self.part}".strip()


def tasks(work: Path, seconds: float, out: Path) -> list[Task]:
    """All, those first that others wait for or that take long."""
    people = ["--root", f"{work}/people", "--cache", f"{work}/people.npz"]
    teacher = ["--teacher", f"{work}/teacher.safetensors"]
    each = lambda option, share: [option, str(share * seconds)]
    of_people, of_teacher = ("people",), ("compare_attention softmax",)
    compared = [
        Task("compare_attention", name, ["--ops", name, *each("--seconds", 1), *teacher]) for name in attention_names()
    ]
    steps = [*each("--layer-seconds", 1 / 4), *each("--logit-seconds", 3 / 4)]
    return [
        Task("people", "", []),
        compared[0],
        Task("train_experts", "", [*people, *each("--seconds", 0.4)], of_people),
        *(Task("distill_lawcat", op, ["--ops", op, *teacher, *steps], of_teacher) for op in ("lawcat", "linear")),
        Task("tune_p_adapter", "", [*teacher, *each("--seconds", 1 / 4)], of_teacher),
        *compared[1:],
        Task("train_reranker", "", [*people, *each("--embedder-seconds", 1 / 4), *each("--seconds", 1 / 4)], of_people),
        Task("train_pairs", "", [*people, *each("--seconds", 1 / 2)], of_people),
        Task("calibrate_sinks", "", [*teacher, "--maps", f"{out}/sinks.png"], of_teacher),
    ]


def make_people(options: argparse.Namespace) -> int:
    """The synthetic trees of re-identification, and their images decoded, in the folder ``options.work``."""
    command = [sys.executable, str(ROOT / "datasets" / "synthesize_reid.py"), "--scale", "small", "--workers", "1"]
    subprocess.run([*command, "--out", f"{options.work}/people"], check=True, stdout=subprocess.DEVNULL)
    small_reid.load(f"{options.work}/people", f"{options.work}/people.npz")
    return 0


def start(task: Task, work: Path) -> multiprocessing.Process:
    """A process, forked so that libraries and images are there."""
    if task.study == "people":
        target, arguments = lambda: sys.exit(run_command(make_people, argparse.Namespace(work=work))), ()
    else:
        target = run_study
        arguments = importlib.import_module(task.study), [*task.arguments, "--json", str(part_file(task, work))]
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def part_file(task: Task, work: Path) -> Path:
    """What a task writes."""
    return work / f"{task.name.replace(' ', '.')}.json"


def together(all_tasks: list[Task], work: Path) -> dict:
    """What is found so far: for each study its file, the rows of its parts one after another."""
    found: dict[str, dict] = {}
    for task in all_tasks:
        file = part_file(task, work)
        if file.exists():
            new = json.loads(file.read_text(encoding="utf-8"))
            rows = found.get(task.study, {}).get("rows", [])
            found[task.study] = new | dict(rows=rows + new["rows"])
    return found


def run_tasks(all_tasks: list[Task], processes: int, work: Path, out: Path) -> list[str]:
    """Runs the tasks as they become possible; gives the names of those that failed or could not start."""
    waiting, running, done, failed, kept = list(all_tasks), {}, set(), [], None
    begin = time.monotonic()
    try:
        while waiting or running:
            for task in [task for task in waiting if done.issuperset(task.after)][: processes - len(running)]:
                waiting.remove(task)
                running[task.name] = start(task, work)
            for name, process in list(running.items()):
                if not process.is_alive():
                    del running[name]
                    print(f"{time.monotonic() - begin:.0f} s: {name}: exit {process.exitcode}", flush=True)
                    done.add(name) if process.exitcode == 0 else failed.append(name)
            lost = [task for task in waiting if set(task.after) & set(failed)]
            waiting = [task for task in waiting if task not in lost]
            failed += [task.name for task in lost]
            if (found := together(all_tasks, work)) != kept:
                write_json(out / "studies.json", found)
                kept = found
            time.sleep(0.5)
    finally:  # before the folder in which they write
        for process in running.values():
            process.terminate()
            process.join()
    return failed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How much, and where to."""
    parser.add_argument("--seconds", type=float, default=120, help="CPU seconds of a process (default: 120)")
    parser.add_argument("--processes", type=int, default=2, help="number of processes at a time (default: 2)")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")


def run(options: argparse.Namespace) -> int:
    """Exit status 1 if a study failed."""
    if options.processes < 1:
        raise VisionKitError(f"--processes {options.processes}: expected 1 or more")
    options.out.mkdir(parents=True, exist_ok=True)
    for data in ((6000, 0), (TEST, 1), (TEST, 2), (1000, 3, True), (TEST, 4, True)):
        make_shapes(*data)  # once for all forks
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        failed = run_tasks(tasks(work, options.seconds, options.out), options.processes, work, options.out)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    run_study(sys.modules[__name__])
