"""The one way of imports that CONTRIBUTING.md states."""

import ast
from pathlib import Path

import visionkit

PACKAGE = Path(visionkit.__file__).parent
METHODS = {"reid", "nvs", "classification"}
BASE = {"registry", "errors", "checks", "files", "extras", "progress", "devices", "signals", "__init__"}
LAYERS = [{"__main__", "cli", "commands", "apis"}, METHODS, {"backbones", "datasets", "engine"}, {"ops"}, BASE]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def imports(file):
    """What of visionkit a module imports, at its head or in a function: ``reid`` of ``visionkit.reid.losses``."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        names = [prefix + each.name for each in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        yield from (name.split(".")[1] for name in names if name.startswith("visionkit."))


def test_imports_run_one_way():
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for other in imports(file):
            upwards = LEVEL.get(other, LEVEL[own]) < LEVEL[own]
            if upwards or own != other and {own, other} <= METHODS:
                wrong.append(f"{file.relative_to(PACKAGE)} imports {other}")
    assert not wrong
