"""Reader of zstd files that notices one that ends early or expands a thousandfold."""

from __future__ import annotations

import io
from typing import IO, Any

# Of compressed bytes at a time: 4 of them can stand for 128 KB, so that this makes 32 MB at most.
_CHUNK = 1 << 10


class ZstdFile(io.RawIOBase):
    """Content of a file of one or more zstd frames.

    ``zstandard.ZstdDecompressor.stream_reader`` takes a file cut short for one that is complete.

    Args:
      file: in binary.

    Raises:
      EOFError: from reading, if the last frame is not complete.
      zstandard.ZstdError: if it is no zstd.
    """

    def __init__(self, file: IO[bytes] | io.RawIOBase):
        import zstandard

        self._file = file
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._left = b""  # compressed bytes after the end of a frame
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._left or self._file.read(_CHUNK)
            self._left = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends within a frame")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            self._ready = memoryview(self._frame.decompress(data))
            if self._frame.eof:
                self._left = self._frame.unused_data
                self._frame = None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def read1(self, size: int) -> bytes:
        """Returns up to ``size`` bytes, as soon as there are some."""
        return self.read(size) or b""
