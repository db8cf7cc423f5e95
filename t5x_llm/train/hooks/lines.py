"""Writers of lines of metrics: a JSONL file, TensorBoard."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from t5x_llm.core.paths import as_path, write_atomic
from t5x_llm.train.jsonl import Appender, Line, dumps, read_lines, rewinds_of


class Writer(Protocol):
    """Writes lines ``{'kind': 'start' | 'train' | 'eval' | 'rewind', 'step': int, ...}`` in order.

    A line's ``rewinds`` counts how often the run had gone back when it was written.
    """

    def open(self, after_step: int, rewinds: int = 0) -> None:
        """Prepares to write from ``after_step`` on, after ``rewinds`` rewinds.

        Lines that an earlier process wrote past that step since the last rewind are dropped: they
        come again.
        """

    def rewind(self, to_step: int, rewinds: int) -> None:
        """Notes that the run went back to ``to_step``; lines past it are given up, not wrong."""

    def write(self, line: Line) -> None:
        """Writes one line."""

    def flush(self) -> None:
        """Makes all lines so far durable."""

    def close(self, failed: bool = False) -> None:
        """Flushes and closes; ``failed`` says that an error ended the run early."""


class JsonLines:
    """Appends lines to a file, one at a time; object stores, which cannot append, get it whole.

    A disk that refuses does not end the run, see ``Appender``.

    Args:
      path: the file.
      every: seconds between rewrites in an object store.
    """

    def __init__(self, path: str | os.PathLike[str], every: float = 60.0):
        self.path, self.every = as_path(path), every
        self._file: Appender | None = None
        self._written = 0.0

    def open(self, after_step: int, rewinds: int = 0) -> None:
        """Drops lines that come again, atomically, so that a resumed curve does not repeat.

        Those from before a rewind stay: they are the record of what was given up.
        """
        lines = [
            dumps(line)
            for line in read_lines(self.path)
            if line["step"] <= after_step or rewinds_of(line) < rewinds
        ]
        if self.path.exists():
            write_atomic(self.path, "".join(lines))
        self._file = Appender(self.path)

    def rewind(self, to_step: int, rewinds: int) -> None:
        """Writes nothing, as every line carries its number of rewinds."""

    def write(self, line: Line) -> None:
        """Appends one line."""
        assert self._file is not None
        self._file.add(line)
        if not self._file.remote or time.monotonic() - self._written > self.every:
            self.flush()

    def flush(self) -> None:
        """Makes the lines so far readable by others."""
        if self._file is not None:
            self._file.flush()
            self._written = time.monotonic()

    def close(self, failed: bool = False) -> None:
        """Flushes and closes."""
        if self._file is not None:
            self._file.close()
            self._file = None


class TensorBoard:
    """Writes event files by tensorboardX, which needs no TensorFlow.

    Its ``SummaryWriter`` is not used: on a full disk its thread dies, and the training with it, as
    nobody empties the queue. Here a file that cannot be written is left, and a new one is started
    when the disk accepts it.

    Args:
      directory: directory of the event files.
      retry: seconds after which a new file is tried.
    """

    def __init__(self, directory: str | os.PathLike[str], retry: float = 60.0):
        self.directory, self.retry = as_path(directory), retry
        self._writer: Any = None
        self._refused = -math.inf
        self._purge: int | None = None
        self._files = 0
        self._flushed = 0.0

    def open(self, after_step: int, rewinds: int = 0) -> None:
        """Lets TensorBoard hide the events past ``after_step`` of an earlier process."""
        self._purge = after_step + 1
        self._try(lambda writer: None)

    def rewind(self, to_step: int, rewinds: int) -> None:
        """Lets TensorBoard hide the events past ``to_step``."""
        self.close()
        self.open(to_step, rewinds)

    def write(self, line: Line) -> None:
        """Writes every number of the line as a scalar, named by its path: ``train/loss``."""
        if line["kind"] in ("start", "rewind"):
            return
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import scalar

        values = [v for name, x in flatten(line["kind"], line) for v in scalar(name, x).value]
        event = Event(step=line["step"], wall_time=time.time(), summary=Summary(value=values))
        self._try(lambda writer: writer.write(event.SerializeToString()))
        if time.monotonic() - self._flushed > 60:
            self.flush()

    def _try(self, act: Callable[[Any], None]) -> None:
        if self._writer is None and time.monotonic() - self._refused < self.retry:
            return
        try:
            if self._writer is None:
                self._begin()
            act(self._writer)
        except Exception as e:  # object stores raise errors of their own
            if self._refused < 0:
                print(f"warning: {self.directory} cannot be written for now: {e}", file=sys.stderr)
            self._refused = time.monotonic()
            broken, self._writer = self._writer, None
            with contextlib.suppress(Exception):
                if broken is not None:
                    broken.close()

    def _begin(self) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter, directory_check

        directory_check(os.fspath(self.directory))
        prefix = f"events.out.tfevents.{int(time.time())}.{os.getpid()}"
        while (path := self.directory / f"{prefix}.{self._files:04}").exists():
            self._files += 1
        self._writer = RecordWriter(os.fspath(path))
        now = time.time()
        events = [Event(wall_time=now, file_version="brain.Event:2")]
        if self._purge is not None:
            start = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=now, step=self._purge, session_log=start))
        for event in events:
            self._writer.write(event.SerializeToString())
        self._writer.flush()
        self._purge = None

    def flush(self) -> None:
        """Makes all events so far durable."""
        if self._writer is not None:
            self._try(lambda writer: writer.flush())
        self._flushed = time.monotonic()

    def close(self, failed: bool = False) -> None:
        """Flushes and closes."""
        if self._writer is not None:
            self._try(lambda writer: writer.close())
            self._writer = None


def flatten(prefix: str, value: Line) -> Iterable[tuple[str, float]]:
    """Yields (``a/b/c``, number) of all numbers in nested dicts but ``step`` and ``rewinds``."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from flatten(f"{prefix}/{key}", item)
        elif isinstance(item, (int, float)) and not isinstance(item, bool):
            if key not in ("step", "rewinds"):
                yield f"{prefix}/{key}", float(item)
