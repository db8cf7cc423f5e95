"""Readers of documents from text, jsonl, JSON, parquet, WARC and HTML.

Every reader yields documents and what it had to set aside, one at a time, in the order of the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from t5x_llm.data.clean.document import Document
from t5x_llm.data.clean.input_config import Input, Limits
from t5x_llm.data.clean.read import rows, web
from t5x_llm.data.clean.read.bounded import QuarantineError
from t5x_llm.data.clean.read.content import Record, decode, file_lines, opened, too_long
from t5x_llm.data.formats import UTF8_BOM, Format
from t5x_llm.data.stretch import Stretch


@dataclasses.dataclass(frozen=True, slots=True)
class Bad:
    """Document, or rest of a file, that could not be read.

    Attributes:
      id: id as of a document.
      reason: a few words, counted.
      detail: the figure, or the beginning of it.
    """

    id: str
    reason: str
    detail: str = ""


Read = Document | Bad


def read(
    source: Input,
    limits: Limits,
    stretch: Stretch,
    name: str,
    kind: Format,
) -> Iterator[Read]:
    """Yields the documents of a stretch of a file, and what had to be set aside.

    Args:
      source: configuration of the input.
      limits: limits of memory and of archives.
      stretch: stretch to read.
      name: name of the file in ids.
      kind: format of the file.
    """
    base = {"language": source.language} if source.language else {}
    number = stretch.line
    try:
        for number, found, meta in _READERS[kind.name](source, limits, stretch, kind):
            where = f"{source.name}/{name}#{number}"
            if isinstance(found, QuarantineError):
                yield Bad(where, found.reason, found.detail)
            elif bad := _unusable(found):
                yield Bad(where, bad)
            else:
                yield Document(where, found, {**base, **meta})
    except QuarantineError as e:
        yield Bad(f"{source.name}/{name}#{number}", e.reason, f"{e.detail} (the rest is left out)")
    except OSError as e:
        yield Bad(f"{source.name}/{name}#{number}", "cannot be read", e.strerror or str(e))


def _unusable(text: str) -> str:
    if not text or text.isspace():
        return "empty text"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return ""


def _text(source: Input, limits: Limits, stretch: Stretch, kind: Format) -> Iterator[Record]:
    most = limits.document_bytes
    if source.unit == "file":
        with opened(limits, stretch, kind) as file:
            raw = file.read(most + 1)
            if len(raw) > most:
                yield 1, QuarantineError("too long", f"more than {most:,} bytes"), {}
            else:
                yield 1, decode(raw.removeprefix(UTF8_BOM), source.encoding), {}
        return
    if source.unit == "line":
        for number, raw, size in file_lines(limits, stretch, kind):
            if size > most:
                yield number, too_long(size, raw), {}
            elif raw.strip():
                found = decode(raw, source.encoding)
                yield number, found.rstrip("\r\n") if isinstance(found, str) else found, {}
        return
    held: list[bytes] = []
    begin = total = 0
    for number, raw, size in file_lines(limits, stretch, kind):
        if size <= most and not raw.strip():
            if total:
                yield begin, _paragraph(held, total, most, source.encoding), {}
            held, total = [], 0
            continue
        begin = begin if total else number
        total += size
        if total <= most:
            held.append(raw)
        elif len(held) > 1:
            held = held[:1]
    if total:
        yield begin, _paragraph(held, total, most, source.encoding), {}


def _paragraph(held: list[bytes], total: int, most: int, encoding: str) -> str | QuarantineError:
    if total > most:
        return too_long(total, held[0] if held else b"")
    found = decode(b"".join(held), encoding)
    return found.strip("\r\n") if isinstance(found, str) else found


_READERS: dict[str, Callable[..., Iterator[Record]]] = {
    "text": _text,
    "jsonl": rows.texts,
    "json": rows.texts,
    "parquet": rows.texts,
    "warc": web.archive,
    "html": web.page,
}
