"""Checks of settings."""

import numpy as np
import pytest

from visionkit.checks import check_above, check_choice, check_counts, check_numbers, given
from visionkit.errors import VisionKitError


def test_settings_that_are_no_such_numbers_are_named():
    check_counts("here", 1, a=1, **given(b=None))
    check_numbers("here", a=0, b=2.5)
    check_numbers("here", 0, 1, a=1)
    check_above("here", 0, a=1e-9)
    check_counts("here", 1, a=np.int64(2))
    check_numbers("here", a=np.float32(0.5), b=np.int64(2))
    for wrong in (-1, 0.5, "x", None, True, float("nan")):
        with pytest.raises(VisionKitError, match=f"here: a={wrong!r}; expected a whole number of at least 0"):
            check_counts("here", 0, a=wrong)
    for wrong in (-0.1, "x", None, True, float("nan"), float("inf")):
        with pytest.raises(VisionKitError, match=f"here: a={wrong!r}; expected a number of at least 0"):
            check_numbers("here", a=wrong)
        with pytest.raises(VisionKitError, match=f"here: a={wrong!r}; expected a number above 0"):
            check_above("here", 0, a=wrong)
    with pytest.raises(VisionKitError, match="here: a=1.5; expected a number from 0 to 1"):
        check_numbers("here", 0, 1, a=1.5)
    with pytest.raises(VisionKitError, match="a=0"):
        check_above("here", 0, a=0)
    with pytest.raises(VisionKitError, match=r"here: a=\['x'\]; expected 'x' or 'y'"):
        check_choice("here", dict(x=1, y=2), a=["x"])


def test_an_argument_of_a_function_stands_for_itself():
    with pytest.raises(VisionKitError, match=r"^power=1: expected a number above 1$"):
        check_above("", 1, power=1)
    with pytest.raises(VisionKitError, match=r"^kind='z': expected one of 'x', 'y'$"):
        check_choice("", "xy", kind="z")
