"""Check reference cases: ``python tests/reference/check.py CASE.json ...``.

Each case names its kind; ``kinds/<kind>.py`` builds our model from the case's own fields and yields what to compare.
Prints the worst relative error of every digest. Exit status: 0 all match, 1 one is beyond its tolerance, 2 a file
could not be read or its kind is unknown.
"""

import argparse
import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
for folder in (ROOT, ROOT / "kernels", HERE.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

os.environ.setdefault("MKL_ENABLE_INSTRUCTIONS", "AVX2")  # MKL reads it when torch loads it, see below

import torch  # noqa: E402
from reference.common import Checks, relative_error  # noqa: E402

from visionkit.errors import VisionKitError  # noqa: E402


def read_case(path: str | Path) -> dict:
    """Read a case file. Raises VisionKitError if it is not one."""
    try:
        case = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VisionKitError(f"{path}: not a readable reference case ({error}); expected a JSON file") from error
    if not isinstance(case, dict) or not isinstance(case.get("kind"), str):
        raise VisionKitError(f"{path}: not a reference case; expected a JSON object with a 'kind'")
    return case


def known_kinds() -> list[str]:
    """The kinds that a module in ``kinds/`` can run."""
    return sorted(path.stem for path in (HERE / "kinds").glob("*.py") if not path.stem.startswith("_"))


def runner_of(case: dict, path: str | Path) -> Callable[[dict], Checks]:
    """The ``run`` function of the case's kind. Raises VisionKitError for an unknown kind."""
    kind = case["kind"]
    if not re.fullmatch(r"\w+", kind) or kind not in known_kinds():
        raise VisionKitError(f"{path}: unknown kind {kind!r}; expected one of {', '.join(known_kinds())}")
    return importlib.import_module(f"reference.kinds.{kind}").run


def check_case(path: str | Path) -> bool:
    """Run one case and print a line per digest. Returns whether all of them match.

    Raises:
        VisionKitError: the file is unreadable, its kind is unknown or a field is missing.
    """
    case = read_case(path)
    run = runner_of(case, path)
    matches, count = True, 0
    try:
        for name, actual, digest, tolerance in run(case):
            error = relative_error(actual, digest)
            good = error <= tolerance
            matches, count = matches and good, count + 1
            print(f"{'ok  ' if good else 'FAIL'} {error:9.2e} (tolerance {tolerance:g})  {name}", flush=True)
    except KeyError as error:
        raise VisionKitError(f"{path}: the case has no field or key {error}; is it a case of this kind?") from error
    if not count:
        raise VisionKitError(f"{path}: nothing to compare; expected at least one digest")
    return matches


def main(argv: list[str] | None = None) -> int:
    """Check every file given; see the module's text for the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="+", metavar="CASE.json")
    status = 0
    for path in parser.parse_args(argv).cases:
        print(path)
        try:
            status = max(status, 0 if check_case(path) else 1)
        except VisionKitError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
    return status


if __name__ == "__main__":
    torch.set_num_threads(2)  # with AVX2 one way to round on every machine, for which MAViT-B's case leaves no room
    sys.exit(main())
