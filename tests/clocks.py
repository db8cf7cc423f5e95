"""Waiting and counting for tests, so that no test reads the wall clock.

A test shows what happens, never how long it took: that depends on the machine and on what else it
does. What must wait, waits for an event; what is cheap makes few calls; code that reads a clock is
given one that the test moves. The limits here only keep a broken program from hanging the suite.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time

import pytest

# Far beyond what anything here takes, on any machine.
HANG = 120.0


def until(condition, seconds=HANG):
    """Looks at ``condition()`` again and again, and returns its first true value.

    It fails the test after ``seconds``, which say only that the condition never comes true.
    """
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            pytest.fail(f"it did not become true within {seconds} s")
        between_looks()
    return found


def between_looks():
    """Lets others work between two looks at a condition."""
    time.sleep(0.01)


@contextlib.contextmanager
def no_hang(seconds=HANG):
    """Fails a body of the main thread that does not end, after so many seconds."""

    def fail(number, frame):
        pytest.fail(f"it did not end within {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def calls(function):
    """Returns the number of calls, of Python's functions and of C's, that ``function()`` makes."""
    count = 0

    def look(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


class Clock:
    """Stands in for the module ``time`` in code under test: ``now`` moves when the test says so."""

    def __init__(self, now=0.0):
        self.now = now

    def _read(self):
        return self.now

    time = monotonic = perf_counter = _read

    def sleep(self, seconds):
        """Passes at once."""
        self.now += seconds
