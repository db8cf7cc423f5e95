"""Records from the files of a source of conversations; rows that cannot be read come as reasons."""

from __future__ import annotations

import collections
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping

from t5x_llm.core import filesystems
from t5x_llm.core.errors import DataError
from t5x_llm.data import formats as files
from t5x_llm.data.instruct import oasst
from t5x_llm.data.instruct.formats import (
    FORMATS,
    ChatFormat,
    fits,
    format_of_columns,
    looks_like,
    renamed,
)
from t5x_llm.data.instruct.prompts import MissingField, PromptWriter
from t5x_llm.data.instruct.records import TypedRecord, Unreadable
from t5x_llm.data.instruct.turns import Row
from t5x_llm.data.reading import SourceDocument, by_name, is_packed, opened, raw_lines
from t5x_llm.data.sources import Source
from t5x_llm.data.stretch import Stretch

_LONGEST = 64 << 20  # characters of one row of a JSON array
_LOOKED_AT = 5  # rows by which a file's format is told


def records(
    source: Source, stretch: Stretch, progress: Callable[[int], object] = int
) -> Iterator[tuple[int, TypedRecord | str]]:
    """Yields (line or row from 1, record), or the reason why the row cannot be read.

    Raises:
      DataError: the file is of another format than ``Source.format``, or of none that is known;
        it is damaged.
    """
    found = _rows(source, stretch, progress)
    if source.prompts is not None:
        yield from _prompted(source, stretch, found)
        return
    head = list(itertools.islice(found, _LOOKED_AT))
    if stretch.line == 1:
        _check(source, stretch.path, head)
    everything = itertools.chain(head, found)
    made = FORMATS.get(source.format)
    first = next((row for _, row in head if isinstance(row, Mapping)), {})
    if oasst.is_message(first) and (made is None or made.name.startswith("oasst")):
        if made is None and (stretch.start or stretch.stop < _size(stretch)):
            raise DataError(
                f"Source {source.name!r}: {stretch.path} holds single messages of trees. Set "
                "Source.format = 'oasst', so that the file is read as a whole."
            )
        yield from _joined(everything, source.format == "oasst_best")
        return
    columns = source.columns or {}
    hint = format_of_columns(columns)
    for line, row in everything:
        if isinstance(row, str):
            yield line, row
            continue
        own = made or FORMATS.get(hint or looks_like(row) or "")
        if own is None:
            yield line, "a row of no known format"
            continue
        try:
            for record in own.read(renamed(row, own, columns), columns):
                yield line, record
        except (Unreadable, DataError) as e:
            yield line, str(e)


def _prompted(
    source: Source, stretch: Stretch, rows: Iterator[tuple[int, Row | str]]
) -> Iterator[tuple[int, TypedRecord | str]]:
    """Yields what the templates of a source make of its rows.

    Raises:
      DataError: not one of a file's first rows has what the templates ask for.
    """
    assert source.prompts is not None
    writer = PromptWriter(source.prompts)
    head = list(itertools.islice(rows, _LOOKED_AT))
    missing: list[tuple[int, str]] = []
    readable = [(line, row) for line, row in head if not isinstance(row, str)]
    for line, row in readable if stretch.line == 1 else ():
        try:
            writer.read(row)
        except MissingField as e:
            missing.append((line, str(e)))
        except Unreadable:
            continue  # counted below
    if missing and len(missing) == len(readable):
        line, reason = missing[0]
        raise DataError(
            f"Source {source.name!r}: {stretch.path}:{line}: {reason}. Prompts.templates ask for "
            f"{', '.join(writer.fields)}: name fields that the rows have."
        )
    for line, given in itertools.chain(head, rows):
        if isinstance(given, str):
            yield line, given
            continue
        try:
            for record in writer.read(given):
                yield line, record
        except Unreadable as e:
            yield line, str(e)


def texts(
    source: Source, stretches: Iterable[Stretch], progress: Callable[[int], object] = int
) -> Iterator[SourceDocument]:
    """Yields the conversations that are taught as plain text, a line a turn, without a template.

    Raises:
      DataError: not one row of a stretch can be read.
    """
    for stretch in stretches:
        reasons, readable = collections.Counter[str](), 0
        for line, record in records(source, stretch, progress):
            if isinstance(record, str):
                reasons[record] += 1
                continue
            readable += 1
            if (taught := record.taught) is not None:
                words = "\n".join(m.content for m in taught.messages if m.content)
                yield SourceDocument(words, stretch.file, line)
        if reasons and not readable:
            told = "; ".join(f"{n:,} x {reason}" for reason, n in reasons.most_common(5))
            raise DataError(
                f"Source {source.name!r}: no conversation of {stretch.path} from line "
                f"{stretch.line} on can be read: {told}. Check Source.format and Source.columns."
            )


def _joined(
    rows: Iterable[tuple[int, Row | str]], best: bool
) -> Iterator[tuple[int, TypedRecord | str]]:
    unread: list[tuple[int, str]] = []

    def readable() -> Iterator[tuple[int, Row]]:
        for line, row in rows:
            if isinstance(row, str):
                unread.append((line, row))
            elif not oasst.is_message(row):
                unread.append((line, "no message with message_id and text"))
            else:
                yield line, row

    yield from oasst.joined(readable(), best)
    yield from unread


def _size(stretch: Stretch) -> int:
    return filesystems.stat(stretch.path).size


def _check(source: Source, path: str, head: list[tuple[int, Row | str]]) -> None:
    """Raises DataError if none of a file's first rows is of the format of the source."""
    read = [(line, row) for line, row in head if not isinstance(row, str)]
    if not read:
        return  # counted row by row
    made, columns = FORMATS.get(source.format), source.columns or {}
    for _, row in read:
        if made is None:
            if looks_like(row) or format_of_columns(columns):
                return
        elif fits(renamed(row, made, columns), made):
            return
    line, row = read[0]
    have = ", ".join(sorted(map(str, row))[:12]) or "none"
    like = looks_like(row)
    told = f"its fields are {have}"
    if made is not None:
        needs = _needs(made)
        like_text = f" It looks like {like!r}: set Source.format = {like!r}." if like else ""
        raise DataError(
            f"Source {source.name!r}: {path}:{line} is not of the format {made.name!r}, which has "
            f"{needs}; {told}.{like_text or _otherwise(row)}"
        )
    raise DataError(
        f"Source {source.name!r}: {path}:{line} is of no known format of conversations; {told}."
        + _otherwise(row)
    )


def _needs(made: ChatFormat) -> str:
    if made.name.startswith("oasst"):
        return "trees of messages, or message_id, parent_id, role and text"
    return ", ".join(made.needs) or "instruction and output, or conversations"


def _otherwise(row: Row) -> str:
    if isinstance(row.get("text"), str):
        return " It looks like plain text: set Source.kind = 'jsonl'."
    return " Map its columns with Source.columns, e.g. {'prompt': 'question', 'response': 'reply'}."


def _rows(
    source: Source, stretch: Stretch, progress: Callable[[int], object]
) -> Iterator[tuple[int, Row | str]]:
    """Yields (line or row from 1, the object), or the reason why there is none."""
    name = by_name(source, stretch.path)
    tabs = source.prompts is not None and source.prompts.columns
    cells = PromptWriter(source.prompts).tab_separated if tabs and source.prompts else None
    if name == source.kind:
        for number, position, raw in raw_lines(stretch, progress):
            if position == 0:
                raw = raw.removeprefix(files.UTF8_BOM)
            if not raw.strip():
                continue
            row = cells(raw, number == 1) if cells else _object(raw)
            if row is not None:
                yield number, row
        return
    values = _parquet(stretch.path) if name == "parquet" else _json(source, stretch.path, name)
    for number, value in enumerate(values, start=1):
        yield number, value if isinstance(value, Mapping) else "not a JSON object"
    progress(stretch.stop)


def _object(raw: bytes) -> Row | str:
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not JSON"
    return value if isinstance(value, dict) else "not a JSON object"


def _json(source: Source, path: str, name: str) -> Iterator[object]:
    if name not in ("json", "jsonl"):
        raise DataError(
            f"Source {source.name!r}: {path} is {name}, which holds no conversations. Give files "
            "of JSON, JSON lines or parquet."
        )
    try:
        with opened(path) as file:
            yield from files.json_values(file, _LONGEST)  # type: ignore[arg-type]
    except ValueError as e:
        raise DataError(f"{path}: not JSON ({e}). Repair the file, or leave it out.") from e


def _parquet(path: str) -> Iterator[object]:
    if is_packed(path):
        raise DataError(f"{path}: parquet is compressed inside; decompress the file itself.")
    try:
        import pyarrow.parquet as pq
    except ImportError as e:
        raise DataError(f"{path}: pip install 't5x-llm[clean]' to read .parquet ({e}).") from e
    with filesystems.open_input(path) as file:
        try:
            for batch in pq.ParquetFile(file).iter_batches(256):
                yield from batch.to_pylist()
        except (ValueError, OSError) as e:
            raise DataError(f"{path}: damaged parquet ({e}).") from e
