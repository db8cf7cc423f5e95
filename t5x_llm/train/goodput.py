"""Accounts for the time of a run, over all its processes, from the journal alone.

The categories are those of Google's ml-goodput-measurement, named there as
``TimeCategory.badput``. Goodput is productive time, which is training that still counts, over all
time from the first process's start to the last line of the last one.

The journal has the account of time at some steps only (when saving, and once a minute); between two
of these, training is spread evenly over the steps. Work of a killed process after its last line
counts as down.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from t5x_llm.train.journal import accounts, when
from t5x_llm.train.jsonl import Line, is_number, is_step

# A larger share of the loop's time spent waiting for data is reported.
STARVED = 0.05


@dataclasses.dataclass(frozen=True)
class TimeCategory:
    """One category of a run's time.

    Attributes:
      label: name for people.
      badput: its name in ml-goodput-measurement.
    """

    label: str
    badput: str


CATEGORIES = {
    "productive": TimeCategory("productive training", "(goodput)"),
    "startup": TimeCategory("starting up", "TPU_INITIALIZATION, TRAINING_PREP"),
    "compile": TimeCategory("compiling", "PROGRAM_STARTUP"),
    "restore": TimeCategory("restoring", "UNPRODUCTIVE_CHECKPOINT_RESTORE_TIME"),
    "save": TimeCategory("saving", "UNPRODUCTIVE_CHECKPOINT_SAVE_TIME"),
    "data": TimeCategory("waiting for data", "DATA_LOADING_SYNC"),
    "eval": TimeCategory("evaluation", "CUSTOM_BADPUT_EVENTS"),
    "other": TimeCategory("samples, profiles, other", "OTHER"),
    "rewinds": TimeCategory("lost to rewinds", "WASTED_PROGRESS_FROM_DISRUPTION"),
    "kills": TimeCategory("lost to interruptions", "WASTED_PROGRESS_FROM_DISRUPTION"),
    "down": TimeCategory("down", "INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION"),
}
_NAMED = ("compile", "restore", "save", "data", "eval", "other")


@dataclasses.dataclass(frozen=True)
class Goodput:
    """An account of time.

    Attributes:
      seconds: by the names of ``CATEGORIES``, all of them, in that order.
      lives: number of processes of rank 0 that took part.
    """

    seconds: dict[str, float]
    lives: int

    @property
    def total(self) -> float:
        """Sums all seconds."""
        return sum(self.seconds.values())

    def share(self, name: str) -> float:
        """Returns the fraction of all time; 0 where there was none."""
        return self.seconds[name] / self.total if self.total > 0 else 0.0

    @property
    def starvation(self) -> float:
        """Returns the fraction of the loop's time, pauses left out, in which it waited for data."""
        loop = sum(self.seconds[k] for k in ("productive", "rewinds", "kills", "data"))
        return self.seconds["data"] / loop if loop > 0 else 0.0

    def table(self) -> str:
        """Returns the account as lines for a terminal."""
        rows = [
            (CATEGORIES[k].label, v, CATEGORIES[k].badput) for k, v in self.seconds.items() if v > 0
        ]
        width = max((len(label) for label, _, _ in rows), default=0)
        lines = [
            f"  {label:<{width}}  {duration(v):>12}  {v / self.total:>6.1%}  {badput}".rstrip()
            for label, v, badput in rows
        ]
        processes = "process" if self.lives == 1 else "processes"
        head = f"Goodput {self.share('productive'):.1%} of {duration(self.total)}"
        text = "\n".join([f"{head} ({self.lives} {processes} in turn)", *lines])
        if self.starvation > STARVED:
            text += f"\n{starved(self.starvation)}"
        return text


def starved(share: float) -> str:
    """Returns the warning about a loop that waits for its data, and the remedies."""
    return (
        f"The loop waited for data {share:.0%} of its time: the machine makes batches more slowly "
        "than it trains on them. Give it more CPU, keep the store on a local disk, or raise "
        "Loop.prefetch if batches come unevenly."
    )


def duration(seconds: float) -> str:
    """Formats seconds: ``0.4 s``, ``2 min 05 s``, ``3 h 20 min``, ``12 d 04 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02} h"
    return f"{hours} h {minute:02} min" if hours else f"{minutes} min {second:02} s"


def lives(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Yields the lines of each process in turn."""
    for _, group in itertools.groupby(lines, key=lambda line: line["life"]):
        yield list(group)


class _Trained:
    """Seconds of training by step, as far as it still counts."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float, float]] = []

    def add(self, start: float, stop: float, seconds: float) -> None:
        self._spans.append((start, stop, seconds))

    def cut(self, step: float) -> float:
        """Drops the training after ``step``, which counts no longer; returns its seconds."""
        lost = 0.0
        while self._spans and self._spans[-1][1] > step:
            start, stop, seconds = self._spans.pop()
            after = 1.0 if start >= step else (stop - step) / (stop - start)
            lost += seconds * after
            if start < step:
                self._spans.append((start, step, seconds * (1 - after)))
                break
        return lost

    def total(self) -> float:
        return sum(seconds for _, _, seconds in self._spans)


def goodput(lines: Sequence[Line]) -> Goodput:
    """Accounts for the time of all processes of a run.

    Args:
      lines: lines from ``read_journal``.
    """
    seconds = dict.fromkeys(CATEGORIES, 0.0)
    trained = _Trained()
    ended: float | None = None
    finished, count = False, 0
    for life in lives(lines):
        known = [line for line in life if "total" in accounts(line)]
        if not known:
            continue
        count += 1
        first, last = known[0], known[-1]
        began = when(first) - accounts(first)["total"]
        if ended is not None:
            # A second run in one process has the age of the first.
            began = max(began, ended)
            seconds["down"] += 0.0 if finished else began - ended
        _count_life(life, max(when(first) - began, 0.0), seconds, trained)
        ended = max(when(last), began)
        # Nobody missed a finished run until it was started again.
        finished = last["event"] == "end" and last.get("status") == "finished"
    seconds["productive"] = trained.total()
    return Goodput(seconds, count)


def _count_life(
    life: Sequence[Line], startup: float, seconds: dict[str, float], trained: _Trained
) -> None:
    before: dict[str, float] | None = None
    restored, step = 0.0, 0
    for line in life:
        account = accounts(line)
        if line["event"] == "restore" and is_number(line.get("seconds")):
            restored += max(line["seconds"], 0.0)
        if "total" not in account:
            continue
        if before is None:
            seconds["restore"] += min(restored, startup)
            seconds["startup"] += startup - min(restored, startup)
            step = line["step"]
            seconds["kills"] += trained.cut(step)
        else:
            spent = _named(account, before)
            spent["restore"] = max(spent["restore"], restored)
            passed = max(account["total"] - before["total"], 0.0)
            for name, value in spent.items():
                seconds[name] += value
            reached = max(line["step"], step)
            trained.add(step, reached, max(passed - sum(spent.values()), 0.0))
            step = reached
        if line["event"] == "rewind" and is_step(line.get("to_step")):
            step = min(line["to_step"], step)
            seconds["rewinds"] += trained.cut(step)
        before, restored = account, 0.0


def _named(account: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    """Seconds between two accounts that were no training."""
    spent = dict.fromkeys(_NAMED, 0.0)
    for name, value in account.items():
        if name != "total":
            category = name if name in spent else "other"
            spent[category] += max(value - before.get(name, 0.0), 0.0)
    return spent
