"""A config's stages, run one after another: finished ones are skipped, an interrupted one goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log

from visionkit.checks import check_counts, check_keys
from visionkit.datasets.images import is_size
from visionkit.engine.config import build, building, check_types, plain
from visionkit.engine.runner import init_distributed
from visionkit.engine.stopping import listening
from visionkit.errors import VisionKitError
from visionkit.files import FULL, cannot_write, remove_leftovers, write_text
from visionkit.registry import STAGES

TOP_LEVEL = (
    "stages", "source", "target", "backbone", "image_size", "workers", "seed", "work_dir",
    "published", "custom_imports",
)  # fmt: skip
"""What a config may hold beside its stages. ``published`` is for the reader: the papers' numbers; ``custom_imports``
names modules that register parts of one's own, as in any config of mmengine."""


@dataclasses.dataclass
class Context:
    """What a stage is given.

    Attributes:
        cfg: The whole config.
        work_dir: The stage's own folder.
        seed: The run's seed.
        launcher: ``none``, ``pytorch``, ``slurm`` or ``mpi``.
        outputs: Folder of every earlier stage.
    """

    cfg: Config
    work_dir: Path
    seed: int
    launcher: str
    outputs: dict[str, Path]


def check_config(cfg: Config, seed: Any) -> None:
    """Look at what all stages share.

    Args:
        cfg: The whole config.
        seed: The run's seed.

    Raises:
        VisionKitError: an unknown key, a wrong value, or no stages.
    """
    check_keys(cfg, TOP_LEVEL, "config")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise VisionKitError(f"seed={seed!r}: expected a whole number from 0 to {2**32 - 1}")
    check_counts("config", 0, workers=cfg.get("workers", 0))
    if not is_size(cfg.get("image_size", (1, 1))):
        raise VisionKitError(f"config: image_size={cfg['image_size']!r}; expected (height, width) in pixels")
    stages = cfg.get("stages")
    if not isinstance(stages, dict) or not stages or not all(isinstance(stage, dict) for stage in stages.values()):
        raise VisionKitError(f"{cfg.filename}: holds no stages; expected stages = dict(name=dict(type=...), ...)")


def run_pipeline(
    cfg: Config,
    work_dir: str | Path,
    seed: int = 1,
    launcher: str = "none",
    only: str | None = None,
    resume: bool = True,
) -> list[dict[str, Any]]:
    """Run the stages of a config.

    Args:
        cfg: ``stages = dict(name=dict(type=..., ...), ...)`` and what the stages share (``source``, ``target``, ...).
        work_dir: Folder of the run; each stage works in ``work_dir/<name>``.
        seed: Everything random follows from it.
        launcher: Launcher of the processes: ``"none"``, ``"pytorch"``, ``"slurm"`` or ``"mpi"``.
        only: Run this stage alone; those before it must be finished.
        resume: Go on where an earlier run in ``work_dir`` stopped; False refuses a folder that holds a run.

    Returns:
        The report's rows: one per evaluated model, with its name and scores.
    """
    check_config(cfg, seed)
    work_dir, stages = Path(work_dir), cfg["stages"]
    try:
        os.path.abspath(work_dir).encode()
    except UnicodeEncodeError as error:  # TensorBoard's files cannot be written there
        raise VisionKitError(f"{work_dir}: lies in a folder whose name is not UTF-8; choose another") from error
    if only is not None:
        check_keys([only], stages, "--stage")
    if not resume and any((work_dir / name).exists() for name in stages):
        raise VisionKitError(f"{work_dir}: holds a run already and --no-resume was given; choose another --work-dir")
    with building("config"):
        built = {name: build_stage(name, stage) for name, stage in stages.items()}
        check_types(plain(cfg))
    for number, (name, stage) in enumerate(built.items()):
        if only in (None, name) and hasattr(stage, "check"):  # before hours of work, not after them
            with building(f"stage {name}"):
                stage.check(cfg, list(built)[:number])
    init_distributed(launcher)
    with listening():
        try:
            _run_stages(built, cfg, work_dir, seed, launcher, only)
        except OSError as error:  # from logs and pictures; checkpoints have a message of their own
            if error.errno not in FULL:
                raise
            raise cannot_write(work_dir, error) from error
    return report(work_dir, stages)


def _run_stages(
    stages: dict[str, Any], cfg: Config, work_dir: Path, seed: int, launcher: str, only: str | None
) -> None:
    outputs: dict[str, Path] = {}
    for name, stage in stages.items():
        folder = work_dir / name
        context = Context(cfg, folder, seed, launcher, dict(outputs))
        mark = fingerprint(cfg, name, seed)
        check_settings(folder, mark)
        if (folder / "done.json").is_file():
            print_log(f"stage {name}: finished before, skipped", "current")
        elif only not in (None, name):
            raise VisionKitError(f"--stage {only}: stage {name} before it is not finished in {work_dir}; run it first")
        else:
            _run_stage(name, stage, context, mark)
        outputs[name] = folder
        if name == only:
            return


def _run_stage(name: str, stage: Any, context: Context, mark: str) -> None:
    folder = context.work_dir
    folder.mkdir(parents=True, exist_ok=True)
    if is_main_process():
        remove_leftovers(folder)
        write_text(folder / "settings.json", json.dumps(dict(fingerprint=mark)))
    barrier()
    print_log(f"stage {name}: starts in {folder}", "current")
    stage.run(context)
    barrier()
    if is_main_process():
        write_text(folder / "done.json", json.dumps(dict(fingerprint=mark)))
    barrier()


def build_stage(name: str, stage: dict[str, Any]) -> Any:
    """One stage from its config, with the names of its keys checked."""
    return build(STAGES, dict(stage, name=name), f"stage {name}")


def fingerprint(cfg: Config, name: str, seed: int) -> str:
    """Identifies a stage's settings and those of the stages before it."""
    names = list(cfg["stages"])
    shared = {key: value for key, value in cfg.items() if key not in ("stages", "work_dir", "published", "workers")}
    stages = {each: cfg["stages"][each] for each in names[: names.index(name) + 1]}
    text = json.dumps(plain(dict(shared=shared, stages=stages, seed=seed)), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_settings(folder: Path, mark: str) -> None:
    """Refuse to go on with a stage's folder that was made with other settings.

    A stage that a wrong setting stopped before its first checkpoint may be tried again with the right one.

    Args:
        folder: The stage's folder, which need not exist.
        mark: The [fingerprint] of the settings.
    """
    done, begun = folder / "done.json", folder / "settings.json"
    same = {file: _read_json(file, dict).get("fingerprint") == mark for file in (done, begun) if file.is_file()}
    if not all(same.values()) and (done in same or any(folder.rglob("*.pth"))):
        raise VisionKitError(
            f"{folder}: was made with other settings or another seed; choose another --work-dir or delete that folder"
        )


def _read_json(file: Path, kind: type) -> Any:
    try:
        content = json.loads(file.read_text())
    except ValueError:
        content = None
    if not isinstance(content, kind) or (kind is list and not all(isinstance(row, dict) for row in content)):
        raise VisionKitError(f"{file}: damaged; delete {file.parent} and run that stage again")
    return content


def report(work_dir: Path, stages: dict[str, Any]) -> list[dict[str, Any]]:
    """The scores that the stages wrote, as rows; also written to ``work_dir/results.json`` and shown as a table."""
    rows: list[dict[str, Any]] = []
    for name in stages:
        file = Path(work_dir) / name / "results.json"
        rows += _read_json(file, list) if file.is_file() else []
    if rows and is_main_process():
        remove_leftovers(work_dir, below=False)  # other runs may be at work in folders of their own
        write_text(Path(work_dir) / "results.json", json.dumps(rows, indent=1))
        show_table(rows)
    return rows


def _cell(value: Any) -> str:
    """Percent and decibel with one digit after the point, shares of one with three."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}"


def show_table(rows: list[dict[str, Any]]) -> None:
    """Print rows of scores as one table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns)
    for row in rows:
        table.add_row(*(escape(_cell(row.get(key, ""))) for key in columns))
    console = Console()
    if not console.is_terminal:
        console = Console(width=1000)  # a log has no edge
    console.print(table)
