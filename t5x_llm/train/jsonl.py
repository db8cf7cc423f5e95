"""Files of one JSON object a line: appended to whole, read as what anyone may have written."""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any

from t5x_llm.core.paths import as_path, write_atomic

Line = dict[str, Any]


def clean(value: object) -> Any:
    """Replaces numbers that are not finite by None, as JSON has no NaN."""
    if isinstance(value, dict):
        return {k: clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def dumps(line: Line) -> str:
    """Formats a line, its end included; half a surrogate pair, which is no UTF-8, becomes '?'."""
    text = json.dumps(clean(line), ensure_ascii=False, separators=(", ", ": ")) + "\n"
    return text.encode("utf-8", errors="replace").decode()


def parse(text: str | bytes) -> Line | None:
    """Reads the object of one line, numbers finite; None for anything else, as half a line."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return clean(value) if isinstance(value, dict) else None


def read_jsonl(path: str | os.PathLike[str]) -> list[Line]:
    """Reads the objects of a file, in order; other lines are left out, a missing file has none."""
    file = as_path(path)
    if not file.exists():
        return []
    # Not splitlines: a string may hold U+2028 and its like, which end no line of JSON.
    texts = file.read_bytes().decode("utf-8", errors="replace").split("\n")
    return [line for line in map(parse, texts) if line is not None]


def is_number(value: object) -> bool:
    """Returns True for a finite number that is no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300


def is_step(value: object) -> bool:
    """Returns True for an integer that can be the number of a step."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def read_lines(path: str | os.PathLike[str]) -> list[Line]:
    """Reads the lines of metrics of a file, each with its ``step``."""
    return [line for line in read_jsonl(path) if is_step(line.get("step"))]


def rewinds_of(line: Line) -> int:
    """Counts the rewinds that a run had made when a line of metrics was written."""
    rewinds = line.get("rewinds", 0)
    return rewinds if is_step(rewinds) else 0


class Appender:
    """Appends lines to a file, each whole or not at all; what a kill left of one is removed first.

    A disk that refuses ends nothing: lines wait, and go with the next ones. The first refusal is
    reported on stderr.

    Args:
      path: the file; made if missing. An object store, which cannot append, gets it whole.
      durable: True waits until the disk has each line, not only the system.

    Attributes:
      failure: error because of which lines are waiting; None if none is.
    """

    def __init__(self, path: str | os.PathLike[str], durable: bool = False):
        self.path, self.durable = as_path(path), durable
        self.remote = is_remote(path)
        self.failure: Exception | None = None
        self._waiting: list[bytes] = []
        self._descriptor = -1
        text = self.path.read_bytes() if self.path.exists() else b""
        end = _sound_end(text)
        missing = b"" if not end or text[:end].endswith(b"\n") else b"\n"
        self._earlier = text[:end] + missing if self.remote else b""
        if self.remote:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.ftruncate(self._descriptor, end)
        os.write(self._descriptor, missing)
        if durable:
            os.fsync(self._descriptor)
            _sync_directory(os.fspath(self.path.parent))

    def add(self, line: Line) -> None:
        """Takes a line; ``flush`` writes it."""
        self._waiting.append(dumps(line).encode())

    def flush(self) -> bool:
        """Writes what was added; returns True if it is written."""
        data = b"".join(self._waiting)
        if not data:
            return True
        try:
            if self.remote:
                write_atomic(self.path, self._earlier + data)
                self._earlier += data
            else:
                self._append(data)
        except Exception as e:  # object stores raise errors of their own
            if self.failure is None:
                print(f"warning: {self.path} cannot be written for now: {e}", file=sys.stderr)
            self.failure = e
            return False
        self._waiting.clear()
        self.failure = None
        return True

    def _append(self, data: bytes) -> None:
        size = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, data) < len(data):
                raise OSError("the disk is full")
            if self.durable:
                os.fsync(self._descriptor)
        except OSError:
            # Not half a line, and none twice when it is written again.
            os.ftruncate(self._descriptor, size)
            raise

    def close(self) -> None:
        """Flushes and closes; it may be called twice."""
        if self.remote or self._descriptor >= 0:
            self.flush()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Returns True for the path of an object store."""
    return "://" in os.fspath(path)


def _sound_end(text: bytes) -> int:
    """Returns the length without a last line that a kill cut short."""
    start = text.rfind(b"\n") + 1
    return len(text) if parse(text[start:]) is not None else start


def _sync_directory(path: str) -> None:
    """Makes the name of a new file durable; not every system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
