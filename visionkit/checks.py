"""Checks of the settings that users give: each refuses a wrong one in one line.

``where`` names what takes a setting, as ``"stage source"``; ``""`` for an argument of a function.
"""

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, NoReturn

from visionkit.errors import VisionKitError


def check_keys(keys: Iterable[str], known: Iterable[str] | None, where: str) -> None:
    """Refuse a key that is not among the known ones, offering the nearest."""
    if known is None:
        return
    known = list(known)
    for key in keys:
        if key not in known:
            raise VisionKitError(f"{where}: unknown key {key!r}{nearest(key, known)}")


def check_counts(where: str, least: int, **counts: Any) -> None:
    """Refuse settings that are no whole numbers of at least ``least``."""
    for option, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            _refuse(where, option, value, f"a whole number of at least {least}")


def check_numbers(where: str, least: float = 0, most: float = math.inf, **numbers: Any) -> None:
    """Refuse settings that are no finite numbers from ``least`` to ``most``."""
    for option, value in numbers.items():
        if not _is_number(value) or not least <= value <= most:
            bounds = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
            _refuse(where, option, value, f"a number {bounds}")


def check_above(where: str, bound: float, **numbers: Any) -> None:
    """Refuse settings that are no finite numbers above ``bound``."""
    for option, value in numbers.items():
        if not _is_number(value) or value <= bound:
            _refuse(where, option, value, f"a number above {bound}")


def check_choice(where: str, choices: Iterable[Any], **options: Any) -> None:
    """Refuse settings that are none of ``choices``."""
    choices = list(choices)  # in a dictionary, a value that cannot be hashed would be a TypeError
    for option, value in options.items():
        if value not in choices:
            names = [repr(choice) for choice in choices]
            _refuse(where, option, value, " or ".join(names) if where else f"one of {', '.join(names)}")


def given(**settings: Any) -> dict[str, Any]:
    """The settings that are not None."""
    return {option: value for option, value in settings.items() if value is not None}


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest ones, or all where they are few."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    return f"; known are {', '.join(names)}" if 0 < len(names) <= 20 else ""


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return -math.inf < value < math.inf  # torch.compile does not take math.isfinite


def _refuse(where: str, option: str, value: Any, expected: str) -> NoReturn:
    told = f"{option}={value!r}"
    raise VisionKitError(f"{where}: {told}; expected {expected}" if where else f"{told}: expected {expected}")
