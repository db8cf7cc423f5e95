"""Records of jsonl, JSON and parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from t5x_llm.core.filesystems import open_input
from t5x_llm.data.clean.input_config import Input, Limits
from t5x_llm.data.clean.read.bounded import QuarantineError
from t5x_llm.data.clean.read.content import (
    SAMPLE,
    Record,
    decode,
    file_lines,
    opened,
    plain,
    too_long,
)
from t5x_llm.data.clean.read.extract import extract
from t5x_llm.data.clean.read.formats import open_parquet, row_groups
from t5x_llm.data.formats import Format, json_values
from t5x_llm.data.stretch import Stretch

# Number of the record from 1, and what it holds: any value of JSON, or why it cannot be read.
Row = tuple[int, Any]


def rows(source: Input, limits: Limits, stretch: Stretch, kind: Format) -> Iterator[Row]:
    """Yields the records of a stretch, of parquet with the fields ``field`` and ``keep`` alone.

    Raises:
      QuarantineError: the file is damaged, or lacks the field; the rest of it is left out.
    """
    readers = {"jsonl": _jsonl, "json": _json, "parquet": _parquet}
    return readers[kind.name](source, limits, stretch, kind)


def texts(source: Input, limits: Limits, stretch: Stretch, kind: Format) -> Iterator[Record]:
    """Yields the text and meta of each record."""
    for number, record in rows(source, limits, stretch, kind):
        if isinstance(record, QuarantineError):
            yield number, record, {}
        else:
            yield (number, *_field(source, record))


def _jsonl(source: Input, limits: Limits, stretch: Stretch, kind: Format) -> Iterator[Row]:
    for number, raw, size in file_lines(limits, stretch, kind):
        if size > limits.document_bytes:
            yield number, too_long(size, raw)
            continue
        if not raw.strip():
            continue
        text = decode(raw, source.encoding)
        if not isinstance(text, str):
            yield number, text
            continue
        try:
            yield number, json.loads(text)
        except (ValueError, RecursionError) as e:
            yield number, QuarantineError("not JSON", f"{e}: {text[:SAMPLE]}")


def _json(source: Input, limits: Limits, stretch: Stretch, kind: Format) -> Iterator[Row]:
    number = 0
    with opened(limits, stretch, kind) as file:
        try:
            for number, value in enumerate(
                json_values(file, limits.document_bytes, source.encoding), 1
            ):
                yield number, value
        except UnicodeDecodeError as e:
            raise QuarantineError(f"not {source.encoding.upper()}", str(e)[:SAMPLE]) from e
        except ValueError as e:
            detail = f"after {number:,} records: {e}"
            raise QuarantineError("not JSON", detail[:SAMPLE]) from e


def _field(source: Input, record: Any) -> tuple[str | QuarantineError, Mapping[str, Any]]:
    """Returns text and meta of a record."""
    if not isinstance(record, dict):
        return QuarantineError("not a JSON object", f"{record!r}"[:SAMPLE]), {}
    if source.field not in record:
        there = ", ".join(map(str, record))[:SAMPLE]
        return QuarantineError(f"no field {source.field}", f"there are {there}"), {}
    text = record[source.field]
    if isinstance(text, bytes) and not source.html:
        decoded = decode(text, source.encoding)
        if not isinstance(decoded, str):
            return decoded, {}
        text = decoded
    if not isinstance(text, (str, bytes) if source.html else str):
        return QuarantineError("wrong type", f"{source.field} is {text!r}"[:SAMPLE]), {}
    meta = {name: plain(record[name]) for name in source.keep if name in record}
    return extract(text) if source.html else str(text), meta


def _parquet(source: Input, limits: Limits, stretch: Stretch, kind: Format) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = [source.field, *source.keep]
    with open_input(stretch.path) as raw:
        file = open_parquet(raw)
        there = file.schema_arrow.names
        if source.field not in there:
            raise QuarantineError(f"no field {source.field}", f"there are {', '.join(there)}")
        _check_type(pa.types, source.field, file.schema_arrow.field(source.field).type)
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
                    column = _plain_column(pa, batch.column(source.field))
                    sizes = pc.binary_length(column).to_pylist()
                    rest = {c: batch.column(c).to_pylist() for c in columns[1:] if c in there}
                    for i, size in enumerate(sizes):
                        if (size or 0) > limits.document_bytes:
                            yield number, QuarantineError("too long", f"{size:,} bytes")
                        else:
                            record = {c: values[i] for c, values in rest.items()}
                            record[source.field] = column[i].as_py()
                            yield number, record
                        number += 1
            except (pa.ArrowException, UnicodeDecodeError) as e:
                raise QuarantineError("damaged parquet", str(e)[:SAMPLE]) from e


def _check_type(types: Any, field: str, kept: Any) -> None:
    """Raises QuarantineError unless a column holds text or bytes, in whatever layout."""
    kept = kept.value_type if types.is_dictionary(kept) or types.is_run_end_encoded(kept) else kept
    stringy = (
        types.is_string, types.is_large_string, types.is_string_view,
        types.is_binary, types.is_large_binary, types.is_binary_view,
    )  # fmt: skip
    if not any(is_kind(kept) for is_kind in stringy):
        raise QuarantineError("wrong type", f"{field} is {kept}")


def _plain_column(pa: Any, column: Any) -> Any:
    """Returns a column of text or bytes as a large string or binary array."""
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    elif pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if pa.types.is_string_view(column.type) or pa.types.is_string(column.type):
        return column.cast(pa.large_string())
    if pa.types.is_binary_view(column.type):
        return column.cast(pa.large_binary())
    return column
