"""``python -m visionkit`` is ``visionkit``."""

import sys

from visionkit.cli import main

if __name__ == "__main__":  # not in the processes that start by importing this
    sys.exit(main())
