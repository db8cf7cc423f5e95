"""Ends a run that stands still, with the stacks of its threads, so that it can be restarted."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from t5x_llm.core.errors import Stuck, check_number
from t5x_llm.core.paths import as_path, write_atomic
from t5x_llm.train.signals import FINAL_WRITE_SECONDS, say, within


@dataclasses.dataclass(frozen=True)
class LifeConfig:
    """Limits on the time for a step, and for the end of the process.

    Attributes:
      watchdog_minutes: without any sign of progress for so long, the stacks of all threads are
        written and the process exits with status 77; 0 never does. It must be longer than the
        longest compilation, save or evaluation.
      grace_seconds: between SIGTERM and the platform's SIGKILL; the process exits with status 75
        before that even if saving did not end.
    """

    watchdog_minutes: float = 30.0
    grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        check_number("LifeConfig.watchdog_minutes", self.watchdog_minutes, low=0, high=1e6)
        check_number("LifeConfig.grace_seconds", self.grace_seconds, above=0, high=1e6)


class Watchdog:
    """Ends the process with status 77 when ``heartbeat`` was not called for ``minutes``.

    It writes the stacks of all threads to standard error and to ``stacks-<process>.txt``, calls
    ``on_stuck``, and ends the process without waiting for anything. It is a context manager.

    Args:
      minutes: longest time without a heartbeat; 0 switches the watchdog off.
      directory: the run directory, local or ``gs://``.
      on_stuck: called with the reason, in a thread that is not waited for longer than
        ``FINAL_WRITE_SECONDS`` seconds.
    """

    def __init__(
        self,
        minutes: float,
        directory: str | os.PathLike[str],
        on_stuck: Callable[[str], Any] | None = None,
    ):
        self._seconds = 60.0 * minutes
        self._file = as_path(directory) / f"stacks-{jax.process_index()}.txt"
        self._on_stuck = on_stuck
        self._closed = threading.Event()
        self._last = (time.monotonic(), "start")
        if minutes > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def heartbeat(self, phase: str = "step") -> None:
        """Records that the run makes progress; cheap, and callable from any thread.

        Args:
          phase: the phase that begins now, such as ``step``, ``save`` or ``evaluation``; the report
            names it.
        """
        self._last = (time.monotonic(), phase)

    def close(self) -> None:
        """Stops watching."""
        self._closed.set()

    def __enter__(self) -> Watchdog:
        self.heartbeat("start")
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            since, phase = self._last
            if time.monotonic() - since > self._seconds:
                self._end(f"No progress for {self._seconds / 60:g} minutes in phase {phase!r}")
                return

    def _end(self, reason: str) -> None:
        title = f"{Stuck.__name__}: {reason}. Stacks of all threads:"
        say(title)
        faulthandler.dump_traceback(2, all_threads=True)
        say(f"Leaving with status {Stuck.exit_code}; the stacks are in {self._file}.")

        def write() -> None:
            with contextlib.suppress(OSError):
                write_atomic(self._file, f"{title}\n{stacks()}")
            if self._on_stuck is not None:
                self._on_stuck(reason)

        within(FINAL_WRITE_SECONDS, write)
        os._exit(Stuck.exit_code)


def stacks() -> str:
    """Returns the Python stacks of all threads, innermost call first."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode("utf-8", "replace")
