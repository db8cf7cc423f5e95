"""Reader of untrusted files that holds no more bytes in memory than a limit."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from t5x_llm.core.filesystems import open_input
from t5x_llm.data.formats import damage, decompressed

# Below this a ratio says nothing: a small file of one repeated line is no bomb.
_RATIO_FROM = 64 << 20
_SKIP = 1 << 20


class QuarantineError(Exception):
    """Error that sets an input, or the rest of it, aside.

    Args:
      reason: a few words, counted.
      detail: the figure behind it.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Counted(io.RawIOBase):
    """File that counts the bytes read of it."""

    def __init__(self, file: Any):
        self._file, self.count = file, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        data: bytes = self._file.read(size)
        self.count += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Expanded(io.RawIOBase):
    """Content of a compressed file, within the limits.

    Raises:
      QuarantineError: from ``read``: an archive that is damaged, or that expands beyond the limits.
    """

    def __init__(self, opened: Any, compressed: Counted, most: int, ratio: float):
        self._opened, self._compressed = opened, compressed
        self._most, self._ratio, self._count = most, ratio, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            # read1: what precedes the damage is not lost with it.
            data = self._opened.read1(len(buffer))
        except damage() as e:
            raise QuarantineError("damaged archive", str(e)) from e
        except OSError as e:
            if e.errno is not None:
                raise
            raise QuarantineError("damaged archive", str(e)) from e  # bz2's
        buffer[: len(data)] = data
        self._count += len(data)
        if self._count > self._most:
            raise QuarantineError("archive expands too far", f"beyond {self._most:,} bytes")
        most = max(self._ratio * self._compressed.count, _RATIO_FROM)
        if self._count > most:
            ratio = self._count / max(self._compressed.count, 1)
            raise QuarantineError("archive expands too far", f"{ratio:,.0f} bytes of one")
        return len(data)


@contextlib.contextmanager
def open_bounded(path: str, compression: str, most: int, ratio: float) -> Iterator[BinaryIO]:
    """Opens a buffered file of the content of ``path``.

    Args:
      path: local or remote.
      compression: ``gz``, ``zst``, ``bz2``, ``xz`` or nothing.
      most: decompressed bytes.
      ratio: decompressed bytes of one compressed byte, at most.
    """
    with open_input(path) as file:
        counted = Counted(file)
        if not compression:
            yield io.BufferedReader(counted, 1 << 18)
            return
        opened = decompressed(counted, compression, path)
        yield io.BufferedReader(Expanded(opened, counted, most, ratio), 1 << 18)


def lines(file: BinaryIO, most: int) -> Iterator[tuple[bytes, int]]:
    """Yields each line and its length; a line longer than ``most`` gives its first bytes only.

    Yields:
      (line with its end, bytes of the line).
    """
    while raw := file.readline(most + 1):
        size = len(raw)
        if size > most and not raw.endswith(b"\n"):
            while more := file.readline(_SKIP):
                size += len(more)
                if more.endswith(b"\n"):
                    break
            raw = raw[:256]
        yield raw, size
