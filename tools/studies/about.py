"""What the results of a run depend on: date, commit, machine and versions."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch

from visionkit import __version__

ROOT = Path(__file__).resolve().parents[2]
CPUINFO = Path("/proc/cpuinfo")


def about_run() -> dict[str, str]:
    """For results that are kept."""
    return dict(
        date=datetime.date.today().isoformat(),
        commit=commit(),
        machine=f"{processor()}, {os.cpu_count()} cores",
        python=platform.python_version(),
        torch=torch.__version__,
        visionkit=__version__,
    )


def commit() -> str:
    """The commit at hand, marked where other files than results differ from it; ``unknown`` where git does not tell."""
    try:
        name = _git("describe", "--always").stdout.strip()
        changed = _git("diff", "--quiet", "HEAD", "--", ".", ":!docs/results").returncode == 1
    except OSError:  # git is not installed
        return "unknown"
    return name + "-dirty" * changed if name else "unknown"


def _git(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)


def processor() -> str:
    """Its name, or its kind where it has none, as ARM's in Linux."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
