"""Make the results page of CORE-ReID on synthetic people: seeds with their spread, and one row per switch.

  python datasets/synthesize_reid.py --out data/synthetic_reid --scale small --seed 1
  python tools/results_core_reid.py --seeds 1 2 3 --page docs/results/core_reid_synthetic.md

Runs that are finished are not run again, so the command may be given again after a stop, or with more seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from studies.about import about_run

from visionkit.cli import Parser, run_command
from visionkit.engine.config import load_config
from visionkit.engine.pipeline import run_pipeline
from visionkit.engine.stage import final_checkpoint
from visionkit.files import check_writable, write_text
from visionkit.reid.mean_teacher import PUBLISHED_LIMIT, ema_limit

RELEASED = dict(model=dict(preset="released"))
SWITCHES = {  # of the target stage, each alone
    "published memory": dict(model=dict(ema_limit=PUBLISHED_LIMIT)),
    "without ECAB": dict(model=dict(ecab=False)),
    "without SECAB": dict(model=dict(secab=False)),
    "without BMFN": dict(model=dict(bmfn=False)),
    "untrained fusion": dict(model=dict(losses=dict(fusion=0))),
    "without local branches": dict(model=dict(local=False)),
    "without mean teacher": dict(model=dict(mean_teacher=False)),
    "full k-means": dict(kmeans=dict(algorithm="full")),
    "DBSCAN on Jaccard distance": dict(clusterer=dict(type="visionkit.JaccardDBSCANLabels")),
}
SCORES = ("mAP", "rank-1", "rank-5", "rank-10")


def main() -> int:
    """Run what is missing, then write the page."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/core_reid_synthetic.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of the headline rows")
    parser.add_argument("--ablation-seeds", type=int, nargs="*", default=[1], help="seeds of the rows per switch")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/results_core_reid"))
    parser.add_argument("--page", type=Path, default=Path("docs/results/core_reid_synthetic.md"))
    return run_command(run, parser.parse_args())


def run(options: argparse.Namespace) -> int:
    """Train every model of the page and write it, with its rows as JSON beside it."""
    check_writable(options.page, "--page")
    rows: list[dict] = []
    for seed in options.seeds:
        rows += headline(options, seed)
        save(options.page, rows)
    for seed in options.ablation_seeds:
        for more in ablation(options, seed):
            rows += more
            save(options.page, rows)
    return 0


def headline(options: argparse.Namespace, seed: int) -> list[dict]:
    """The four models that every seed has: direct transfer, adapted, released, supervised."""
    folder = options.work_dir / f"seed{seed}"
    cfg = load_config(options.config)
    if "camstyle" in cfg["stages"] and seed != options.seeds[0]:  # the styled images are made once
        styled = options.work_dir / f"seed{options.seeds[0]}" / "camstyle" / "images"
        cfg["stages"].pop("camstyle")
        cfg["stages"]["source"]["styled"] = str(styled)
    rows = timed(lambda: run_pipeline(cfg, folder, seed), folder, seed)
    return rows + variant(options, seed, "released", RELEASED)


def ablation(options: argparse.Namespace, seed: int) -> Iterator[list[dict]]:
    """One row per switch, and the number of clusters at half and twice the number of identities."""
    target = load_config(options.config)["stages"]["target"]
    memory = ema_limit(target["epochs"] * target["iters_per_epoch"])
    changes = dict(model=dict(preset="released", ema_limit=memory))
    yield variant(options, seed, "released, memory of the default", changes)
    for name, changes in SWITCHES.items():
        yield variant(options, seed, name, changes)
    for factor in (0.5, 2):
        changes = dict(num_clusters=round(target["num_clusters"] * factor))
        yield variant(options, seed, f"K = {factor:g} x identities", changes)
    yield without_camera_style(options, seed)


def without_camera_style(options: argparse.Namespace, seed: int) -> list[dict]:
    """Both stages again, from real images alone."""
    cfg = load_config(options.config)
    cfg["stages"].pop("supervised", None)
    if cfg["stages"].pop("camstyle", None) is None:
        return []
    cfg["stages"]["source"]["styled"] = None
    cfg["stages"]["source"]["report"] = "direct transfer without camera style"
    cfg["stages"]["target"]["report"] = "without camera style"
    folder = options.work_dir / f"seed{seed}_without_camera_style"
    return timed(lambda: run_pipeline(cfg, folder, seed), folder, seed)


def variant(options: argparse.Namespace, seed: int, name: str, changes: dict) -> list[dict]:
    """The target stage alone with some settings changed, from the same pre-trained weights."""
    cfg = load_config(options.config)
    start = final_checkpoint(options.work_dir / f"seed{seed}" / "source")
    target = dict(cfg["stages"]["target"], init_from=str(start), report=name)
    model = dict(target.get("model", {}), **changes.get("model", {}))
    cfg["stages"] = dict(target=dict(target, **dict(changes, model=model)))
    folder = options.work_dir / f"seed{seed}_{name.replace(' ', '_').replace('=', '').replace(',', '')}"
    return timed(lambda: run_pipeline(cfg, folder, seed), folder, seed)


def timed(work: Callable[[], list[dict]], folder: Path, seed: int) -> list[dict]:
    """Rows of a run with its seed; the seconds of the run that really did the work are kept beside it."""
    start = time.perf_counter()
    rows = work()
    clock = folder / "seconds.json"
    if not clock.is_file():
        write_text(clock, json.dumps(round(time.perf_counter() - start)))
    seconds = json.loads(clock.read_text(encoding="utf-8"))
    return [dict(row, seed=seed, run_seconds=seconds) for row in rows]


def save(page: Path, rows: list[dict]) -> None:
    """Write the rows and the page."""
    page.parent.mkdir(parents=True, exist_ok=True)
    meta = dict(about_run(), command=" ".join(["python", *sys.argv]))
    gpu = torch.cuda.is_available()
    meta["machine"] = torch.cuda.get_device_name() if gpu else f"{meta['machine']}, {torch.get_num_threads()} threads"
    write_text(page.with_suffix(".json"), json.dumps(dict(meta=meta, rows=rows), indent=1))
    write_text(page, render(meta, rows))


def render(meta: dict, rows: list[dict]) -> str:
    """The page in Markdown."""
    last = [row for row in rows if row["checkpoint"] == "last"]
    names = list(dict.fromkeys(row["model"] for row in last))
    lines = ["| model | seeds | mAP | rank-1 | rank-5 | rank-10 |", "|---|---|---|---|---|---|"]
    for name in names:
        group = [row for row in last if row["model"] == name]
        scores = [spread([row[score] for row in group]) for score in SCORES]
        lines.append(f"| {name} | {len(group)} | {' | '.join(scores)} |")
    return PAGE.format(table="\n".join(lines), best=best_epoch(rows), gap=gap_closed(last), **meta)


def best_epoch(rows: list[dict]) -> str:
    """How far the epochs that the test labels would pick are above the last ones, in mAP."""
    scores = {(row["model"], row["seed"], row["checkpoint"]): row["mAP"] for row in rows}
    gains = [score - scores[model, seed, "last"] for (model, seed, kind), score in scores.items() if kind == "best"]
    if max(gains, default=0) == 0:
        return "here it is the last epoch in every row"
    return f"here it is up to {max(gains):.1f} mAP higher; the JSON file has both"


def spread(values: list[float]) -> str:
    """Mean and, from two values on, their sample standard deviation."""
    more = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{more}"


def gap_closed(rows: list[dict]) -> str:
    """How much of the way from direct transfer to the upper bound adaptation goes, in mAP."""
    means = {
        name: statistics.mean(row["mAP"] for row in rows if row["model"] == name)
        for name in ("direct transfer", "adapted", "released", "supervised")
        if any(row["model"] == name for row in rows)
    }
    if len(means) < 4:
        return "not all models have run yet"
    gap = means["supervised"] - means["direct transfer"]
    closed = {name: 100 * (means[name] - means["direct transfer"]) / gap for name in ("adapted", "released")}
    return f"the default closes {closed['adapted']:.0f} % of the gap, `released` {closed['released']:.0f} %"


PAGE = """# CORE-ReID on synthetic people

Scores on the target's query and gallery (single query, mAP by the finite sum) in percent; mean ± standard deviation
over the seeds. The models are those of the last epoch. Published numbers are often of the epoch that scores highest on
the test labels, which a user does not have: {best}.

{table}

Between direct transfer and the supervised upper bound, {gap}.

Made by `{command}` on {date}
at commit {commit}: {machine}, torch {torch}, visionkit {visionkit}.
The JSON file beside this page has every row with its seed and the seconds of its run. The styled images are made once,
with the first seed.
"""


if __name__ == "__main__":
    sys.exit(main())
