"""Write the tables of docs/attention.md from the measured results.

python tools/studies/attention_page.py --benchmark docs/results/attention.json \
    --accuracy docs/results/studies.json --page docs/attention.md

What stands between the lines ``<!-- table -->`` and ``<!-- end of table -->`` is written anew; the rest is kept.
"""

import argparse
import json
import sys
from pathlib import Path

from study import run_study

from visionkit.errors import VisionKitError
from visionkit.files import write_text
from visionkit.ops.attention import MASKS, attention_names, mechanism

LENGTHS = (1024, 4096, 16384)
START, END = "<!-- table -->", "<!-- end of table -->"


def table(benchmark: list[dict], accuracy: dict) -> str:
    """One row for each mechanism."""
    told = {row["op"]: row for row in accuracy["rows"]}
    head = ["name", "source", "complexity", "masks", "own parameters", "accuracy", "ms", "MiB", "exponent", "error"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in attention_names():
        known = mechanism(name)
        mask = known.masks[0]
        rows = {
            row["tokens"]: row
            for row in benchmark
            if row.get("op") == name and row["mask"] == mask and "tokens" in row  # the first row tells of the run alone
        }
        per_length = lambda key, scale, rows=rows: " / ".join(_number(rows.get(n, {}).get(key), scale) for n in LENGTHS)
        slope = next((row["exponent"] for row in rows.values() if "exponent" in row), None)
        score = told.get(name)
        cells = [
            name,
            f"[{known.source}](https://arxiv.org/abs/{known.source})",
            known.complexity,
            ", ".join(m for m in MASKS if m in known.masks),
            str(score["own_parameters_per_layer"]) if score else "–",
            f"{100 * score['accuracy']:.1f}" if score else "–",
            per_length("cpu_seconds", 1e3),
            per_length("peak_bytes", 2**-20),
            _number(slope, 1),
            _number(rows.get(LENGTHS[1], {}).get("error"), 1),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float | None, scale: float) -> str:
    if value is None:
        return "–"
    value *= scale
    return f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Three files."""
    for name in ("benchmark", "accuracy", "page"):
        parser.add_argument(f"--{name}", required=True, type=Path)


def run(options: argparse.Namespace) -> int:
    """Puts the table into the page."""
    benchmark = json.loads(options.benchmark.read_text(encoding="utf-8"))
    rows = benchmark if isinstance(benchmark, list) else benchmark["rows"]
    accuracy = json.loads(options.accuracy.read_text(encoding="utf-8"))
    new = table(rows, accuracy.get("compare_attention", accuracy))  # run_all.py's file, or that of the study alone
    page = options.page.read_text(encoding="utf-8")
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise VisionKitError(
            f"--page {options.page}: expected the lines {START} and {END}, between which the table goes"
        )
    write_text(options.page, f"{before}{START}\n{new}\n{END}{after}")
    return 0


if __name__ == "__main__":
    run_study(sys.modules[__name__])
