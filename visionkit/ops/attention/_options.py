"""Checks of what users give to an attention."""

from visionkit.errors import VisionKitError


def check_counts(least: int, **options: int | None) -> None:
    """Raises VisionKitError for an option that is neither None nor a whole number of at least ``least``."""
    for name, value in options.items():
        if value is not None and (not hasattr(value, "__index__") or value < least):
            raise VisionKitError(f"{name}={value!r}: expected a whole number of at least {least}")


def check_above(bound: float, **options: float | None) -> None:
    """Raises VisionKitError for an option that is neither None nor a number above ``bound``."""
    for name, value in options.items():
        if value is not None and not value > bound:
            raise VisionKitError(f"{name}={value!r}: expected a number above {bound}")
