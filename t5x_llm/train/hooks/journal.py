"""Entries of a run in its journal: its start, signs of life, its end, and its account of time."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from t5x_llm.core.errors import Preempted
from t5x_llm.train.hooks.base import Hook, StepRecord
from t5x_llm.train.journal import Journal

if TYPE_CHECKING:
    from t5x_llm.train.loop import Trainer

_IMPORTED = time.perf_counter()


class Journaling(Hook):
    """Writes start, alive and end, and gives the journal the account of time.

    Give it first: it is then called before all others at the start, and after them at the end.

    Args:
      journal: journal of the run.
      every: seconds between signs of life, at least.
    """

    name = "journal"

    def __init__(self, journal: Journal, every: float = 60.0):
        self.journal, self.every = journal, every
        self._written = time.monotonic()

    def on_start(self, trainer: Trainer) -> None:
        """Writes the step that the run starts from, the devices and the versions."""
        environment = trainer.facts.get("environment", {})
        self.journal.account = lambda: account(trainer)
        self._written = time.monotonic()
        self.journal.write(
            "start",
            trainer.step,
            position=trainer.data.position,
            steps=trainer.config.steps,
            resumed=trainer.step > 0,
            rewinds=trainer.rewinds,
            processes=environment.get("processes", 1),
            devices=environment.get("devices"),
            mesh=trainer.facts.get("mesh", {}),
            reading=trainer.facts.get("reading"),
            versions={"python": environment.get("python")} | environment.get("packages", {}),
        )

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Writes a sign of life, if the last one is old."""
        if time.monotonic() - self._written >= self.every:
            self._alive(record.step, position=record.position, loss=record.values["loss"])

    def on_rewind(self, trainer: Trainer) -> None:
        """Writes the account of the steps that were given up."""
        self._alive(trainer.step, position=trainer.data.position)

    def _alive(self, step: int, **fields: object) -> None:
        self._written = time.monotonic()
        self.journal.write("alive", step, **fields)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Writes the status: finished, stopped, preempted, interrupted, or the error's name."""
        status, reason = _status(trainer, error)
        fields = {"reason": reason} if reason else {}
        self.journal.write(
            "end", trainer.step, status=status, position=trainer.data.position, **fields
        )


def _status(trainer: Trainer, error: BaseException | None) -> tuple[str, str]:
    if error is None:
        return ("finished" if trainer.last else "stopped"), ""
    if isinstance(error, Preempted):
        return "preempted", ""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", ""
    return type(error).__name__, str(error)[:500]


def account(trainer: Trainer) -> dict[str, float]:
    """Returns the seconds since the process began, and those not spent on training, by name."""
    spent = {name: round(value, 3) for name, value in list(trainer.seconds.items())}
    return {"total": round(process_age(), 3)} | spent


def process_age() -> float:
    """Returns seconds since this process began, or since the import where the system has none."""
    try:
        with open("/proc/self/stat", encoding="utf-8") as file:
            # The 22nd field; the second, a name in brackets, may hold blanks.
            started = int(file.read().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.perf_counter() - _IMPORTED
