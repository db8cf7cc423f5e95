"""Readers of documents from text, jsonl, parquet, WARC and HTML.

Every reader yields documents and what it had to set aside, one at a time, in the order of the file.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from t5x_llm.core.paths import as_path
from t5x_llm.data.clean.clean_config import Input, Limits
from t5x_llm.data.clean.document import Document
from t5x_llm.data.clean.read.bounded import QuarantineError, lines, open_bounded
from t5x_llm.data.clean.read.charset import decode_page, header_charset
from t5x_llm.data.clean.read.extract import extract
from t5x_llm.data.clean.read.formats import Format
from t5x_llm.data.reading import Stretch

_BOM = b"\xef\xbb\xbf"
_SAMPLE = 120


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
# What a format's reader yields: record number, text or reason, meta or detail.
_Record = tuple[int, str | QuarantineError, Mapping[str, Any]]


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


def _decode(raw: bytes, encoding: str) -> str | QuarantineError:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as e:
        return QuarantineError(f"not {encoding.upper()}", f"byte {e.start}: 0x{raw[e.start]:02x}")


def _too_long(size: int, raw: bytes) -> QuarantineError:
    head = raw[:_SAMPLE].decode("utf-8", "replace")
    return QuarantineError("too long", f"{size:,} bytes: {head}")


def _opened(limits: Limits, stretch: Stretch, kind: Format) -> Any:
    return open_bounded(stretch.path, kind.compression, limits.expanded_bytes, limits.ratio)


def _file_lines(limits: Limits, stretch: Stretch, kind: Format) -> Iterator[tuple[int, bytes, int]]:
    """Yields number, bytes and size of each line of a stretch."""
    if kind.compression:
        with _opened(limits, stretch, kind) as file:
            for number, (raw, size) in enumerate(lines(file, limits.document_bytes), 1):
                yield number, raw.removeprefix(_BOM) if number == 1 else raw, size
        return
    with as_path(stretch.path).open("rb") as file:
        file.seek(stretch.start)
        position = stretch.start
        for number, (raw, size) in enumerate(lines(file, limits.document_bytes), stretch.line):
            yield number, raw.removeprefix(_BOM) if position == 0 else raw, size
            position += size
            if position >= stretch.stop:
                return


def _text(source: Input, limits: Limits, stretch: Stretch, kind: Format) -> Iterator[_Record]:
    most = limits.document_bytes
    if source.unit == "file":
        with _opened(limits, stretch, kind) as file:
            raw = file.read(most + 1)
            if len(raw) > most:
                yield 1, QuarantineError("too long", f"more than {most:,} bytes"), {}
            else:
                yield 1, _decode(raw.removeprefix(_BOM), source.encoding), {}
        return
    if source.unit == "line":
        for number, raw, size in _file_lines(limits, stretch, kind):
            if size > most:
                yield number, _too_long(size, raw), {}
            elif raw.strip():
                found = _decode(raw, source.encoding)
                yield number, found.rstrip("\r\n") if isinstance(found, str) else found, {}
        return
    held: list[bytes] = []
    begin = total = 0
    for number, raw, size in _file_lines(limits, stretch, kind):
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
        return _too_long(total, held[0] if held else b"")
    found = _decode(b"".join(held), encoding)
    return found.strip("\r\n") if isinstance(found, str) else found


def _jsonl(source: Input, limits: Limits, stretch: Stretch, kind: Format) -> Iterator[_Record]:
    for number, raw, size in _file_lines(limits, stretch, kind):
        if size > limits.document_bytes:
            yield number, _too_long(size, raw), {}
            continue
        if not raw.strip():
            continue
        text = _decode(raw, source.encoding)
        if not isinstance(text, str):
            yield number, text, {}
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as e:
            yield number, QuarantineError("not JSON", f"{e}: {text[:_SAMPLE]}"), {}
            continue
        yield (number, *_field(source, record))


def _field(source: Input, record: Any) -> tuple[str | QuarantineError, Mapping[str, Any]]:
    """Returns text and meta of a record."""
    if not isinstance(record, dict):
        return QuarantineError("not a JSON object", f"{record!r}"[:_SAMPLE]), {}
    if source.field not in record:
        there = ", ".join(map(str, record))[:_SAMPLE]
        return QuarantineError(f"no field {source.field}", f"there are {there}"), {}
    text = record[source.field]
    if isinstance(text, bytes) and not source.html:
        decoded = _decode(text, source.encoding)
        if not isinstance(decoded, str):
            return decoded, {}
        text = decoded
    if not isinstance(text, (str, bytes) if source.html else str):
        return QuarantineError("wrong type", f"{source.field} is {text!r}"[:_SAMPLE]), {}
    meta = {name: _plain(record[name]) for name in source.keep if name in record}
    return extract(text) if source.html else str(text), meta


def _plain(value: Any) -> Any:
    """Returns the value if JSON can hold it, else its string."""
    try:
        json.dumps(value).encode()
        return value
    except (TypeError, ValueError, RecursionError):
        return str(value).encode("utf-8", "replace").decode()


def _parquet(source: Input, limits: Limits, stretch: Stretch, kind: Format) -> Iterator[_Record]:
    import pyarrow as pa
    import pyarrow.compute as pc

    from t5x_llm.data.clean.read.formats import open_parquet, row_groups

    columns = [source.field, *source.keep]
    with as_path(stretch.path).open("rb") as raw:
        file = open_parquet(raw)
        there = file.schema_arrow.names
        if source.field not in there:
            raise QuarantineError(f"no field {source.field}", f"there are {', '.join(there)}")
        kept = file.schema_arrow.field(source.field).type
        if pa.types.is_dictionary(kept):
            kept = kept.value_type
        stringy = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary,
                   pa.types.is_large_binary)  # fmt: skip
        if not any(is_kind(kept) for is_kind in stringy):
            raise QuarantineError("wrong type", f"{source.field} is {kept}")
        groups = []
        for group in row_groups(file):
            if not stretch.start <= group.offset < stretch.stop:
                continue
            if group.expanded > max(limits.ratio * group.compressed, 64 << 20):
                ratio = group.expanded / max(group.compressed, 1)
                raise QuarantineError("archive expands too far", f"{ratio:,.0f} bytes of one")
            groups.append(group)
        for group in groups:
            number = group.first
            rows = max(1, min(1024, (4 << 20) * group.rows // max(group.expanded, 1)))
            try:
                batches = file.iter_batches(
                    rows, row_groups=[group.number], use_threads=False,
                    columns=[c for c in columns if c in there],
                )  # fmt: skip
                for batch in batches:
                    column = batch.column(source.field)
                    if pa.types.is_dictionary(column.type):
                        column = column.dictionary_decode()
                    sizes = pc.binary_length(column).to_pylist()
                    rest = {c: batch.column(c).to_pylist() for c in columns[1:] if c in there}
                    for i, size in enumerate(sizes):
                        if (size or 0) > limits.document_bytes:
                            yield number, QuarantineError("too long", f"{size:,} bytes"), {}
                        else:
                            record = {c: values[i] for c, values in rest.items()}
                            record[source.field] = column[i].as_py()
                            yield (number, *_field(source, record))
                        number += 1
            except (pa.ArrowException, UnicodeDecodeError) as e:
                raise QuarantineError("damaged parquet", str(e)[:_SAMPLE]) from e


def _html(source: Input, limits: Limits, stretch: Stretch, kind: Format) -> Iterator[_Record]:
    with _opened(limits, stretch, kind) as file:
        raw = file.read(limits.document_bytes + 1)
    if len(raw) > limits.document_bytes:
        yield 1, QuarantineError("too long", f"more than {limits.document_bytes:,} bytes"), {}
    else:
        yield 1, extract(raw), {}


def _warc(source: Input, limits: Limits, stretch: Stretch, kind: Format) -> Iterator[_Record]:
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    number = 0
    with _opened(limits, stretch, kind) as file:
        try:
            for record in ArchiveIterator(_Forward(file)):
                if record.rec_type not in ("response", "resource", "conversion"):
                    continue
                number += 1
                yield (number, *_warc_record(record, limits))
        except (ArchiveLoadFailed, ValueError, EOFError) as e:
            raise QuarantineError("damaged WARC", str(e)[:_SAMPLE]) from e


class _Forward:
    """File without seek, so that warcio takes a decompressed file for what it is."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()


def _warc_record(record: Any, limits: Limits) -> tuple[str | QuarantineError, Mapping[str, Any]]:
    headers = record.rec_headers
    meta = {
        name: _plain(value)
        for name, key in (("url", "WARC-Target-URI"), ("date", "WARC-Date"))
        if (value := headers.get_header(key))
    }
    kind = headers.get_header("Content-Type") or ""
    if record.http_headers is not None:
        kind = record.http_headers.get_header("Content-Type") or ""
        status = record.http_headers.get_statuscode()
        if status and not status.startswith("2"):
            return QuarantineError("not a page", f"status {status}"), meta
    charset = header_charset(kind)
    kind = kind.split(";")[0].strip().lower()
    if kind and not re.fullmatch(r"text/(html|plain)|application/xhtml\+xml", kind):
        return QuarantineError("not a page", kind[:_SAMPLE]), meta
    raw = record.content_stream().read(limits.document_bytes + 1)
    if len(raw) > limits.document_bytes:
        return QuarantineError("too long", f"more than {limits.document_bytes:,} bytes"), meta
    if kind == "text/plain":
        return decode_page(raw, charset), meta
    return extract(raw, charset), meta


_READERS: dict[str, Callable[..., Iterator[_Record]]] = {
    "text": _text,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "warc": _warc,
    "html": _html,
}
