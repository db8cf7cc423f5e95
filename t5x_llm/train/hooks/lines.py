"""Where lines of metrics go: a JSONL file, TensorBoard."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable
from typing import IO, Any, Protocol

from t5x_llm.core.paths import as_path, write_atomic

Line = dict[str, Any]


class Writer(Protocol):
    """Takes lines ``{'kind': 'start' | 'train' | 'eval', 'step': int, ...}`` in order."""

    def open(self, after_step: int) -> None:
        """Prepares to write; what an earlier process wrote past ``after_step`` is dropped."""

    def write(self, line: Line) -> None:
        """Takes one line."""

    def flush(self) -> None:
        """Makes all lines so far durable."""

    def close(self) -> None:
        """Flushes and ends."""


def clean(value: Any) -> Any:
    """JSON has no NaN: what is not finite becomes None."""
    if isinstance(value, dict):
        return {k: clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_lines(path: str | os.PathLike[str]) -> list[Line]:
    """The lines of a JSONL file; a last line that a kill cut short is left out."""
    file = as_path(path)
    if not file.exists():
        return []
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return [line for line in lines if isinstance(line, dict) and "step" in line]


class JsonLines:
    """Appends to a file, a line at a time; object stores, which cannot append, get it whole.

    Args:
      path: the file.
      every: seconds between rewrites in an object store.
    """

    def __init__(self, path: str | os.PathLike[str], every: float = 60.0):
        self.path, self.every = as_path(path), every
        self._remote = "://" in str(self.path)
        self._file: IO[str] | None = None
        self._lines: list[str] = []
        self._written = 0.0

    def open(self, after_step: int) -> None:
        """Drops lines past ``after_step``, atomically, so that a resumed curve does not repeat."""
        kept = [line for line in read_lines(self.path) if line["step"] <= after_step]
        texts = [_dumps(line) for line in kept]
        if self.path.exists() or self._remote:
            write_atomic(self.path, "".join(texts))
        if self._remote:
            self._lines = texts
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(os.fspath(self.path), "a", encoding="utf-8", buffering=1)

    def write(self, line: Line) -> None:
        """Appends one line."""
        if self._file is not None:
            self._file.write(_dumps(line))
            return
        self._lines.append(_dumps(line))
        if time.monotonic() - self._written > self.every:
            self.flush()

    def flush(self) -> None:
        """Makes it durable."""
        if self._file is not None:
            self._file.flush()
        elif self._lines:
            write_atomic(self.path, "".join(self._lines))
            self._written = time.monotonic()

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None


def _dumps(line: Line) -> str:
    return json.dumps(clean(line), ensure_ascii=False, separators=(", ", ": ")) + "\n"


class TensorBoard:
    """Event files by tensorboardX, which needs no TensorFlow.

    Args:
      directory: of the event files.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = as_path(directory)
        self._writer: Any = None

    def open(self, after_step: int) -> None:
        """Events past ``after_step`` of an earlier process are hidden by TensorBoard."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(os.fspath(self.directory), purge_step=after_step + 1)

    def write(self, line: Line) -> None:
        """Every number of the line as a scalar, named by its path: ``train/loss``."""
        if line["kind"] == "start":
            return
        for name, value in flatten(line["kind"], line):
            self._writer.add_scalar(name, value, line["step"])

    def flush(self) -> None:
        """Makes it durable."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes."""
        if self._writer is not None:
            self._writer.close()


def flatten(prefix: str, value: Line) -> Iterable[tuple[str, float]]:
    """(``a/b/c``, number) of all numbers in nested dicts, but for ``step``."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from flatten(f"{prefix}/{key}", item)
        elif isinstance(item, (int, float)) and not isinstance(item, bool) and key != "step":
            yield f"{prefix}/{key}", float(item)
