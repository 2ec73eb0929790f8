"""Scripts find what lies beside them, as when they are run. Last: ``tools/test.py`` is not Python's ``test``."""

import sys
from pathlib import Path

TOOLS = Path(__file__).parents[2] / "tools"
sys.path += [str(TOOLS), str(TOOLS / "studies")]
