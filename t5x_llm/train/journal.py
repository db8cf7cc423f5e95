"""Journal of a run: its events, one a line, over all its processes.

``journal.jsonl`` of the run directory is only ever appended to, and every line is on disk before
the run goes on. A resumed run obeys the rewinds that it records.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from t5x_llm.core.errors import DataError
from t5x_llm.core.paths import as_path
from t5x_llm.train.jsonl import Appender, Line, is_number, is_step, read_jsonl

JOURNAL = "journal.jsonl"

# Events written by the thread that trains, with the step it stands at: they carry the account.
ACCOUNTED = frozenset(("start", "save", "preemption", "rewind", "alive", "end"))
_LOCK_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Decision:
    """Decision to rewind, and to skip data.

    Attributes:
      onset: the first step of the spike.
      detected: the step whose metrics showed it.
      to_step: the checkpoint gone back to; what was trained after it is void.
      skip: [start, stop) of the data stream's positions, left out from then on.
      kind: kind of the spike, as in ``spike.Spike``.
      reason: text for people.
    """

    onset: int
    detected: int
    to_step: int
    skip: tuple[int, int]
    kind: str
    reason: str


class Journal:
    """Appends events to the journal of a run.

    Every line has the time (UTC), the event, a step, and ``life``, the number of the process that
    wrote it: 1 for the first, 2 for the one that resumed it. Any thread may write.

    Args:
      path: the file; on an object store, which cannot append, it is rewritten whole.
      primary: other processes than the first write nothing.

    Attributes:
      earlier: the lines of earlier processes, as they were when it was opened.
      decisions: the rewinds of all processes, in order.
      account: returns the time spent so far, {'total': seconds, ...}; set by the journal's hook
        and added to the lines of ``ACCOUNTED`` events.
    """

    def __init__(self, path: str | os.PathLike[str], primary: bool = True):
        self.path, self.primary = as_path(path), primary
        self.account: Callable[[], dict[str, float]] | None = None
        self.earlier = read_journal(path)
        self.decisions = decisions(self.earlier)
        self.life = 1 + max((line["life"] for line in self.earlier), default=0)
        self._file = Appender(path, durable=True) if primary else None
        self._lock = threading.RLock()

    def write(self, event: str, step: int, **fields: object) -> bool:
        """Appends one line and waits until it is on disk.

        A disk that refuses does not end the run: the line waits, and goes with the next one.

        Returns:
          True if all lines so far are on disk.
        """
        if self._file is None:
            return True
        line: Line = {"time": _now(), "event": event, "step": int(step), "life": self.life}
        line |= fields
        if event in ACCOUNTED and self.account is not None:
            line["account"] = self.account()
        # A thread that hangs in a write must not make the watchdog's thread hang as well.
        held = self._lock.acquire(timeout=_LOCK_SECONDS)
        try:
            self._file.add(line)
            return self._file.flush()
        finally:
            if held:
                self._lock.release()

    def decide(self, step: int, decision: Decision, **fields: object) -> None:
        """Writes a rewind that is about to be made.

        Args:
          step: step at which the run stands.
          decision: the decision.
          **fields: more fields of the line.

        Raises:
          OSError: the line is not on disk. Nothing may be restored then: a run that is killed and
            resumed would not know of it.
        """
        self.write("rewind", step, **dataclasses.asdict(decision), **fields)
        if self._file is not None and self._file.failure is not None:
            raise self._file.failure
        self.decisions.append(decision)

    def close(self) -> None:
        """Closes the file; it may be called twice."""
        if self._file is not None:
            self._file.close()


def _now() -> str:
    now = datetime.datetime.now(datetime.UTC)
    return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def when(line: Line) -> float:
    """Returns the time of a line from ``read_journal``, in seconds since 1970."""
    return datetime.datetime.fromisoformat(line["time"]).timestamp()


def read_journal(path: str | os.PathLike[str]) -> list[Line]:
    """Reads the lines of a journal, in order, whatever wrote the file.

    Each has a ``time`` with its zone, an ``event``, a ``step`` and a ``life``; lines that lack one
    of the first three are left out, as is a last line that a kill cut short.
    """
    lines = []
    for line in read_jsonl(path):
        if not (isinstance(line.get("event"), str) and is_step(line.get("step"))):
            continue
        try:
            if datetime.datetime.fromisoformat(line["time"]).tzinfo is None:
                continue
            when(line)
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        life = line.get("life")
        lines.append(line | {"life": life if is_step(life) else 0})
    return lines


def decisions(lines: Sequence[Line]) -> list[Decision]:
    """Returns the rewinds of a journal, in order.

    Raises:
      DataError: one cannot be read. Without it those after it would have wrong numbers.
    """
    found = []
    for line in lines:
        if line["event"] == "rewind":
            try:
                found.append(_decision(line))
            except (KeyError, TypeError, ValueError) as e:
                message = f"The journal's rewind of {line['time']} cannot be read: {line!r}"
                raise DataError(message) from e
    return found


def _decision(line: Line) -> Decision:
    def steps(values: Iterable[Any]) -> list[int]:
        if not all(map(is_step, values)):
            raise ValueError(values)
        return list(values)

    onset, detected, to_step = steps([line[k] for k in ("onset", "detected", "to_step")])
    start, stop = steps(line["skip"])
    if start > stop:
        raise ValueError(line["skip"])
    kind, reason = str(line.get("kind", "")), str(line.get("reason", ""))
    return Decision(onset, detected, to_step, (start, stop), kind, reason)


def accounts(line: Line) -> dict[str, float]:
    """Returns the account of a line, as far as it is one: {name: seconds >= 0}."""
    account = line.get("account")
    if not isinstance(account, dict):
        return {}
    return {str(k): float(v) for k, v in account.items() if is_number(v) and v >= 0}
