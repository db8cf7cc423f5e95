"""Formats of the files of an input, told by name and content, and the cutting of files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from t5x_llm.data import formats
from t5x_llm.data.clean.input_config import Input
from t5x_llm.data.clean.read.bounded import QuarantineError
from t5x_llm.data.formats import Format

UNKNOWN = "unknown format"


def format_of(source: Input, path: str, content: bytes) -> Format:
    """Returns the format of a file.

    Args:
      source: input that it belongs to.
      path: path of the file.
      content: its first bytes, decompressed.

    Raises:
      QuarantineError: if neither its name nor its content tells.
    """
    named = formats.format_of(path)
    if source.format != "auto":
        return Format(source.format, "" if source.format == "parquet" else named.compression)
    name, why = named.name, "parquet is not compressed as a whole"
    if not name:
        name, why = formats.sniff(path, content, source.encoding)
    elif name == "json":
        name = formats.json_kind(content) or "jsonl"
    if not name or (name == "parquet" and named.compression):
        raise QuarantineError(UNKNOWN, f"{path!r}: {why}"[:200])
    return Format(name, named.compression)


def is_cut(source: Input, kind: Format) -> bool:
    """Returns whether the file may be cut between lines."""
    return not kind.compression and (
        kind.name == "jsonl" or (kind.name == "text" and source.unit == "line")
    )


def check_head(head: bytes, kind: Format) -> None:
    """Checks a file's first bytes, as they stand, against its format.

    Raises:
      QuarantineError: the bytes are not of the format.
    """
    if not head:
        raise QuarantineError("empty file")
    seen = formats.magic_of(head)
    wanted = "parquet" if kind.name == "parquet" else kind.compression
    if wanted:
        if seen != wanted:
            raise QuarantineError("not what its name says", f"not {wanted}: {head[:8].hex(' ')}")
        return
    if seen and seen != "bz2":  # three letters that a text may begin with
        raise QuarantineError("binary file", seen)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        if kind.name == "html":  # its reader goes by the mark
            return
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
