"""Libraries that only some of the work needs."""

import importlib
from types import ModuleType

from visionkit.errors import VisionKitError


def require(module: str, extra: str) -> ModuleType:
    """A library of one of visionkit's extras.

    Args:
        module: to import.
        extra: which brings it, as ``"nvs"``.

    Raises:
        VisionKitError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise VisionKitError(f'{module}: is not installed; get it by: pip install "visionkit[{extra}]"') from error
