"""Pages: HTML files, and the records of WARC and WET files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from t5x_llm.data.clean.input_config import Input, Limits
from t5x_llm.data.clean.read.bounded import QuarantineError
from t5x_llm.data.clean.read.charset import decode_page, header_charset
from t5x_llm.data.clean.read.content import SAMPLE, Record, opened, plain
from t5x_llm.data.clean.read.extract import extract
from t5x_llm.data.formats import Format
from t5x_llm.data.stretch import Stretch


def page(source: Input, limits: Limits, stretch: Stretch, kind: Format) -> Iterator[Record]:
    """Yields the main text of an HTML file."""
    with opened(limits, stretch, kind) as file:
        raw = file.read(limits.document_bytes + 1)
    if len(raw) > limits.document_bytes:
        yield 1, QuarantineError("too long", f"more than {limits.document_bytes:,} bytes"), {}
    else:
        yield 1, extract(raw), {}


def archive(source: Input, limits: Limits, stretch: Stretch, kind: Format) -> Iterator[Record]:
    """Yields the texts of the pages in a WARC file, with their address and date."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    number = 0
    with opened(limits, stretch, kind) as file:
        try:
            for record in ArchiveIterator(_Forward(file)):
                if record.rec_type not in ("response", "resource", "conversion"):
                    continue
                number += 1
                yield (number, *_warc_record(record, limits))
        except (ArchiveLoadFailed, ValueError, EOFError) as e:
            raise QuarantineError("damaged WARC", str(e)[:SAMPLE]) from e


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
        name: plain(value)
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
        return QuarantineError("not a page", kind[:SAMPLE]), meta
    raw = record.content_stream().read(limits.document_bytes + 1)
    if len(raw) > limits.document_bytes:
        return QuarantineError("too long", f"more than {limits.document_bytes:,} bytes"), meta
    if kind == "text/plain":
        return decode_page(raw, charset), meta
    return extract(raw, charset), meta
