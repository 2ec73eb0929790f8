"""Libraries that only some of the work needs."""

import importlib
import signal
import threading
from types import ModuleType

from visionkit.errors import VisionKitError


def require(module: str, extra: str) -> ModuleType:
    """A library of one of visionkit's extras.

    Args:
        module: name of the module to import.
        extra: name of the extra that installs it, ``"nvs"`` for instance.

    Raises:
        VisionKitError: it is not installed.
    """
    listener = signal.getsignal(signal.SIGTERM)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise VisionKitError(f'{module}: is not installed; get it by: pip install "visionkit[{extra}]"') from error
    finally:
        if listener is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, listener)  # pycolmap puts one of its own there, which dumps its stack
