"""Content of files as bytes and lines, for the readers of every format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from t5x_llm.core.filesystems import open_input
from t5x_llm.data.clean.input_config import Limits
from t5x_llm.data.clean.read.bounded import QuarantineError, lines, open_bounded
from t5x_llm.data.formats import UTF8_BOM, Format
from t5x_llm.data.stretch import Stretch

SAMPLE = 120  # characters of a record that are shown
# What a format's reader yields: record number, text or reason, meta or detail.
Record = tuple[int, str | QuarantineError, Mapping[str, Any]]


def decode(raw: bytes, encoding: str) -> str | QuarantineError:
    """Decodes bytes, or returns what does not fit."""
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as e:
        return QuarantineError(f"not {encoding.upper()}", f"byte {e.start}: 0x{raw[e.start]:02x}")


def too_long(size: int, raw: bytes) -> QuarantineError:
    """Returns the reason to set a line or record aside that is longer than the limit."""
    head = raw[:SAMPLE].decode("utf-8", "replace")
    return QuarantineError("too long", f"{size:,} bytes: {head}")


def opened(limits: Limits, stretch: Stretch, kind: Format) -> Any:
    """Opens the content of a file, decompressed, within the limits."""
    return open_bounded(stretch.path, kind.compression, limits.expanded_bytes, limits.ratio)


def file_lines(limits: Limits, stretch: Stretch, kind: Format) -> Iterator[tuple[int, bytes, int]]:
    """Yields number, bytes and size of each line of a stretch."""
    if kind.compression:
        with opened(limits, stretch, kind) as file:
            for number, (raw, size) in enumerate(lines(file, limits.document_bytes), 1):
                yield number, raw.removeprefix(UTF8_BOM) if number == 1 else raw, size
        return
    with open_input(stretch.path) as file:
        file.seek(stretch.start)
        position = stretch.start
        for number, (raw, size) in enumerate(lines(file, limits.document_bytes), stretch.line):
            yield number, raw.removeprefix(UTF8_BOM) if position == 0 else raw, size
            position += size
            if position >= stretch.stop:
                return


def plain(value: Any) -> Any:
    """Returns the value if JSON can hold it, else its string."""
    try:
        json.dumps(value).encode()
        return value
    except (TypeError, ValueError, RecursionError):
        return str(value).encode("utf-8", "replace").decode()
