"""Check that a built wheel holds both packages and works where the repository is not at hand."""

import argparse
import subprocess
import sys
import tempfile
import zipfile

from visionkit.cli import Parser, run_command
from visionkit.errors import VisionKitError

EXPECTED = ("visionkit/__init__.py", "visionkit/cli.py", "visionkit/commands/train.py", "visionkit_kernels/__init__.py")
SAYS = "import visionkit, visionkit_kernels; print(visionkit.__file__)"


def run(options: argparse.Namespace) -> int:
    """Unpack the wheel beside nothing else, import it, and ask its command for help."""
    wheel = options.wheel
    if not zipfile.is_zipfile(wheel):
        raise VisionKitError(f"{wheel}: expected a wheel; build one: make wheel")
    names = zipfile.ZipFile(wheel).namelist()
    missing = [name for name in EXPECTED if name not in names]
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    extra = sorted(tops - {"visionkit", "visionkit_kernels"})
    if missing or extra:
        raise VisionKitError(f"{wheel}: missing {missing}, unexpected {extra}")
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        python = [sys.executable, "-c"]
        where = subprocess.run(
            [*python, f"import sys; sys.path.insert(0, {folder!r}); {SAYS}"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        if not where.startswith(folder):
            raise VisionKitError(f"{wheel}: import found {where}, not the wheel's own files")
        code = f"import sys; sys.path.insert(0, {folder!r}); from visionkit.cli import main; main(['train', '--help'])"
        subprocess.run([*python, code], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    print(f"{wheel}: {len(names)} files, imports and runs")
    return 0


def main() -> int:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("wheel", help="a .whl file")
    return run_command(run, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
