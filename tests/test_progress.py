"""Progress is seen on a terminal and in a log."""

import itertools
import sys
import time

from visionkit.progress import progress


def test_off_a_terminal_progress_is_a_line_every_ten_seconds(capsys, monkeypatch):
    clock = itertools.count(0, 4)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with progress("fitting", 9) as advance:
        for _ in range(9):
            advance()
    assert capsys.readouterr().out == "fitting: 3 of 9\nfitting: 6 of 9\n"
    with progress("fitting", 1) as advance:
        advance()
    assert capsys.readouterr().out == ""


def test_on_a_terminal_progress_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress("fitting", 9) as advance:
        advance(4)
    shown = capsys.readouterr()
    assert shown.out == "" and "fitting" in shown.err and "4/9" in shown.err
