"""Measure this machine: ``python tools/benchmark.py reid [--json OUT]``.

Each subcommand is a file in ``tools/benchmarks/`` with ``add_arguments(parser)``, of which one is ``--threads``, and
``run(options)``, which returns rows of ``job``, ``seconds``, ``peak_bytes``, ``reference_seconds`` and whatever else
the job has to tell.
"""

import argparse
import ast
import importlib
import json
import os
import sys
from pathlib import Path

from visionkit.cli import Parser, run_command
from visionkit.errors import VisionKitError
from visionkit.files import write_text

HERE = Path(__file__).resolve().parent
COLUMNS = ("job", "seconds", "peak_bytes", "reference_seconds")


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="SUBCOMMAND")
    for file in sorted((HERE / "benchmarks").glob("[!_]*.py")):
        command = commands.add_parser(file.stem, help=summary(file))
        command.add_argument("--json", metavar="OUT", help="write the rows to this file")
        if arguments[:1] == [file.stem]:
            module = importlib.import_module(f"benchmarks.{file.stem}")
            command.description = module.__doc__
            module.add_arguments(command)
    return run_command(run, parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """Print its table and write its rows."""
    check_common(options)
    rows = importlib.import_module(f"benchmarks.{options.command}").run(options)
    print(table(rows))
    if options.json:
        write_text(options.json, json.dumps(rows, indent=1) + "\n")
    return 0


def summary(file: Path) -> str:
    """The first sentence of a benchmark's docstring, without importing what it needs."""
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))).splitlines()[0]


def check_common(options: argparse.Namespace) -> None:
    """Raises VisionKitError for no thread, and where rows could not be written, before hours of measuring them."""
    if options.threads < 1:
        raise VisionKitError(f"--threads {options.threads}: expected 1 or more")
    path = options.json
    if path and (not os.access(Path(path).absolute().parent, os.W_OK) or Path(path).is_dir()):
        raise VisionKitError(
            f"--json {path}: is a folder, or its folder is not there or cannot be written; give a file"
        )


def table(rows: list[dict]) -> str:
    """Rows as aligned text: the common columns, then a job's own."""
    names = list(COLUMNS) + sorted({key for row in rows for key in row} - set(COLUMNS))
    cells = [names, *[[_text(name, row.get(name)) for name in names] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells)


def _text(name: str, value: object) -> str:
    if value is None:
        return "-"
    if name.endswith("_bytes"):
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
