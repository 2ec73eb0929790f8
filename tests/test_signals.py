"""Listening to signals for a while."""

import signal
import threading

from visionkit.signals import on_signals


def test_what_was_there_comes_back():
    heard, before = [], signal.getsignal(signal.SIGTERM)
    with on_signals(lambda number, frame: heard.append(number), signal.SIGTERM):
        signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is before


def test_another_thread_changes_nothing():
    before, inside = signal.getsignal(signal.SIGTERM), []

    def listen():
        with on_signals(print, signal.SIGTERM):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert inside == [before]
