"""Libraries that only some of the work needs."""

import signal
import subprocess
import sys

import pytest


def test_pycolmap_dumps_no_stack_where_nothing_listens_for_sigterm():
    """As in a pool's processes, which end by it."""
    pytest.importorskip("pycolmap")
    code = (
        "import os, signal; from visionkit.extras import require; require('pycolmap', 'nvs');"
        " os.kill(os.getpid(), signal.SIGTERM)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGTERM and done.stderr == ""
