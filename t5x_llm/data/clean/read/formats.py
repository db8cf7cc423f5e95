"""Format of a file, by its name and its first bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from t5x_llm.data.clean.clean_config import Input
from t5x_llm.data.clean.read.bounded import QuarantineError


class Format(NamedTuple):
    """Format: name of its reader, and compression ``gz``, ``zst``, ``bz2`` or nothing."""

    name: str
    compression: str = ""


_SUFFIXES = {
    "txt": "text",
    "text": "text",
    "md": "text",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
    "parquet": "parquet",
    "warc": "warc",
    "wet": "warc",
    "html": "html",
    "htm": "html",
}
_COMPRESSIONS = {"gz": "gz", "zst": "zst", "bz2": "bz2"}
_MAGIC = {
    "gz": (b"\x1f\x8b",),
    "bz2": (b"BZh",),
    # A frame, or a skippable one.
    "zst": (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + i, 0x2A, 0x4D, 0x18]) for i in range(16))),
    "zip": (b"PK\x03\x04", b"PK\x05\x06"),
    "xz": (b"\xfd7zXZ\x00",),
    "PDF": (b"%PDF-",),
    "parquet": (b"PAR1",),
}


def format_of(source: Input, path: str) -> Format:
    """Returns the format of a file.

    Raises:
      QuarantineError: if its name does not tell.
    """
    parts = path.rsplit("/", 1)[-1].lower().split(".")[1:]
    compression = _COMPRESSIONS.get(parts[-1], "") if parts else ""
    if compression:
        parts = parts[:-1]
    if source.format != "auto":
        return Format(source.format, "" if source.format == "parquet" else compression)
    name = _SUFFIXES.get(parts[-1], "") if parts else ""
    if not name or (name == "parquet" and compression):
        raise QuarantineError("unknown format", f"its suffix says nothing of {path!r}"[:200])
    return Format(name, compression)


def is_cut(source: Input, kind: Format) -> bool:
    """Returns whether the file may be cut between lines."""
    return not kind.compression and (
        kind.name == "jsonl" or (kind.name == "text" and source.unit == "line")
    )


def check_head(head: bytes, kind: Format) -> None:
    """Checks a file's first 4 KB against its format.

    Raises:
      QuarantineError: the bytes are not of the format.
    """
    if not head:
        raise QuarantineError("empty file")
    seen = next((name for name, marks in _MAGIC.items() if head.startswith(marks)), "")
    wanted = "parquet" if kind.name == "parquet" else kind.compression
    if wanted:
        if seen != wanted:
            raise QuarantineError("not what its name says", f"not {wanted}: {head[:8].hex(' ')}")
        return
    if seen and seen != "bz2":  # three letters that a text may begin with
        raise QuarantineError("binary file", seen)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise QuarantineError("not UTF-8", "UTF-16")
    if b"\x00" in head and kind.name != "warc":
        raise QuarantineError("binary file", f"a NUL at byte {head.index(0)}")


class RowGroup(NamedTuple):
    """Rows of a parquet file that lie together; sizes in bytes, ``first`` row from 1."""

    number: int
    offset: int
    compressed: int
    expanded: int
    first: int
    rows: int


def open_parquet(file: Any) -> Any:
    """Opens a ``pyarrow.parquet.ParquetFile``.

    Raises:
      QuarantineError: the file is damaged or of another format.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError) as e:
        raise QuarantineError("damaged parquet", str(e)[:120]) from e


def row_groups(file: Any) -> Iterator[RowGroup]:
    """Yields the row groups of a ParquetFile, by its footer."""
    metadata = file.metadata
    first = 1
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        chunks = [group.column(i) for i in range(group.num_columns)]
        offset = min(
            (min(c.data_page_offset, c.dictionary_page_offset or c.data_page_offset)
             for c in chunks), default=0,
        )  # fmt: skip
        yield RowGroup(
            index, offset, sum(c.total_compressed_size for c in chunks),
            sum(c.total_uncompressed_size for c in chunks), first, group.num_rows,
        )  # fmt: skip
        first += group.num_rows
