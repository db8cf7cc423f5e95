"""Documents from files of a source, and the cutting of files into jobs. No TensorFlow.

A job is some 8 MB of input: stretches of lines of large files, or several small files. Which jobs
there are depends on the files alone, so any number of workers makes the same store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from t5x_llm.core import filesystems
from t5x_llm.core.errors import DataError, nearest
from t5x_llm.core.paths import here_or_shipped
from t5x_llm.data import formats
from t5x_llm.data.sources import Source
from t5x_llm.data.stretch import Stretch

JOB_BYTES = 8 << 20
_BLOCK = 1 << 20
# Of an archive of pages, what is no page or has no text.
_PASSED_OVER = ("not a page", "no text in HTML", "empty text")


@dataclasses.dataclass(frozen=True)
class Scan:
    """Result of one pass over a file.

    Attributes:
      path: the file.
      size: in bytes.
      sha256: of its content, hex.
      cuts: (byte, line from 1) at which stretches of about 8 MB begin; only the first if the file
        is one document.
    """

    path: str
    size: int
    sha256: str
    cuts: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class SourceDocument:
    """Document read for a store: its file's index, its line or record from 1, its score."""

    text: str
    file: int
    line: int
    score: float | None = None


def find_files(source: Source) -> list[str]:
    """Returns the source's files, sorted, each once.

    Raises:
      DataError: a path that is not there, a glob that matches nothing, a directory.
    """
    found: set[str] = set()
    for pattern in map(here_or_shipped, source.paths):
        found.update(filesystems.find(f"Source {source.name!r}", "Source.files", pattern))
    return sorted(found)


def scan(path: str, lines: bool, progress: Callable[[int], object] = int, most: int = 0) -> Scan:
    """Hashes a file and finds where it can be cut.

    Args:
      path: the file.
      lines: True if it may be cut between lines.
      progress: called with the bytes of each block.
      most: bytes of a stretch, about; 0 is ``JOB_BYTES``.

    Raises:
      DataError: if it cannot be read.
    """
    digest, most = hashlib.sha256(), most or JOB_BYTES
    position, line, cuts = 0, 1, [(0, 1)]
    try:
        with filesystems.open_input(path) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                if lines:
                    begin = 0
                    while position + len(block) - cuts[-1][0] >= most:
                        wanted = max(cuts[-1][0] + most - position - 1, begin)
                        end = block.find(b"\n", wanted) + 1
                        if not end:
                            break
                        line += block.count(b"\n", begin, end)
                        cuts.append((position + end, line))
                        begin = end
                    line += block.count(b"\n", begin)
                position += len(block)
                progress(len(block))
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror or e}).") from e
    if len(cuts) > 1 and cuts[-1][0] == position:
        cuts.pop()
    return Scan(path, position, digest.hexdigest(), tuple(cuts))


def plan_jobs(scans: Iterable[Scan], most: int = 0) -> list[tuple[Stretch, ...]]:
    """Returns the stretches of each job, of about ``most`` bytes, in the order of the files."""
    most = most or JOB_BYTES
    jobs: list[tuple[Stretch, ...]] = []
    current: list[Stretch] = []
    held = 0
    for index, found in enumerate(scans):
        stops = [byte for byte, _ in found.cuts[1:]] + [found.size]
        for (start, line), stop in zip(found.cuts, stops, strict=True):
            if current and held + stop - start > most * 5 // 4:
                jobs.append(tuple(current))
                current, held = [], 0
            current.append(Stretch(index, found.path, start, stop, line))
            held += stop - start
    return [*jobs, tuple(current)] if current else jobs


def read(
    source: Source, stretches: Iterable[Stretch], progress: Callable[[int], object] = int
) -> Iterator[SourceDocument]:
    """Yields the documents in these stretches; blank lines and empty texts are left out.

    Raises:
      DataError: naming file, line and byte, for text that is not UTF-8, a line that is not JSON,
        a field that is missing or is not a string, a score that is not a number.
    """
    for stretch in stretches:
        try:
            if by_name(source, stretch.path) != source.kind:
                yield from _documents(source, stretch, progress)
            else:
                yield from _lines(source, stretch, progress)
        except OSError as e:
            raise DataError(f"{stretch.path}: cannot be read ({e.strerror or e}).") from e


def _lines(
    source: Source, stretch: Stretch, progress: Callable[[int], object]
) -> Iterator[SourceDocument]:
    """Yields the documents of a file of lines, or of one text."""
    if source.kind == "text" and source.unit == "file":
        with opened(stretch.path) as file:
            text = _decode(file.read(), stretch.path, 0)
        progress(stretch.stop)
        if text:
            yield SourceDocument(text, stretch.file, 1)
        return
    for number, position, raw in raw_lines(stretch, progress):
        text = _decode(raw, stretch.path, position, number)
        if text.strip():
            text, score = _text(source, text, f"{stretch.path}:{number}")
            if text:
                yield SourceDocument(text, stretch.file, number, score)


def raw_lines(
    stretch: Stretch, progress: Callable[[int], object] = int
) -> Iterator[tuple[int, int, bytes]]:
    """Yields (number, first byte, content) of the lines of a stretch.

    Raises:
      DataError: the file is damaged, or shrank since it was looked at.
    """
    with opened(stretch.path) as file:
        packed = is_packed(stretch.path)
        if not packed:
            file.seek(stretch.start)
        position, number = stretch.start, stretch.line
        while packed or position < stretch.stop:
            raw = file.readline()
            if not raw and packed:
                progress(stretch.stop)
                break
            if not raw:
                raise DataError(f"{stretch.path}: shrank while it was read.")
            yield number, position, raw
            position, number = position + len(raw), number + 1
            progress(0 if packed else len(raw))


def _documents(
    source: Source, stretch: Stretch, progress: Callable[[int], object]
) -> Iterator[SourceDocument]:
    """Yields the documents of a JSON array, and of parquet, WARC and HTML files.

    They are read as cleaning reads them; what cannot be read ends the run with its place.
    """
    from t5x_llm.data.clean.input_config import Input, Limits
    from t5x_llm.data.clean.read.bounded import QuarantineError
    from t5x_llm.data.clean.read.formats import check_head
    from t5x_llm.data.clean.read.records import Bad
    from t5x_llm.data.clean.read.records import read as read_records

    path, name = stretch.path, by_name(source, stretch.path)
    kind = formats.Format(name, formats.format_of(path).compression)
    keep = (source.score.split(".")[0],) if source.score else ()
    given = Input(source.name, path, format=name, field=source.field, keep=keep)
    limits = Limits.of_own_files()
    try:
        with filesystems.open_input(path) as file:
            check_head(file.read(formats.HEAD), kind)
        for found in read_records(given, limits, stretch, path, kind):
            number = int(found.id.rpartition("#")[2])
            if isinstance(found, Bad):
                if found.reason in _PASSED_OVER:
                    continue
                raise DataError(
                    f"{path}:{number}: {found.reason} ({found.detail}). Repair or leave out the "
                    f"record, or clean the file with `t5x-llm data clean` ({source.name!r})."
                )
            score = _score(source, dict(found.meta), f"{path}:{number}") if source.score else None
            yield SourceDocument(found.text, stretch.file, number, score)
    except QuarantineError as e:
        raise DataError(f"{path}: {e.reason} ({e.detail}).") from e
    except ImportError as e:
        raise DataError(f"{path}: pip install 't5x-llm[clean]' to read .{name} ({e}).") from e
    progress(stretch.stop)


@functools.lru_cache(maxsize=4096)
def _json_of(path: str) -> str:
    with filesystems.open_input(path) as file:
        return formats.json_kind(formats.read_head(file, path)[1]) or "jsonl"


def by_name(source: Source, path: str) -> str:
    """Returns the format that a file of a source is read in: by its name, else ``Source.kind``.

    Raises:
      DataError: a file of records in a source of texts.
    """
    name = formats.format_of(path).name
    if name in ("", "text", "jsonl") or (name == "json" and source.kind == "text"):
        return source.kind
    if name == "json":
        return _json_of(path)
    if name == "parquet" and source.kind == "text":
        raise DataError(
            f"Source {source.name!r}: {path} holds records. Set Source.kind = 'jsonl', which reads "
            "fields of records, and Source.field."
        )
    return name


def is_packed(path: str) -> bool:
    """Returns whether a file is compressed, and therefore read as a whole."""
    return bool(formats.format_of(path).compression)


def is_cut(source: Source, path: str) -> bool:
    """Returns whether a file of the source may be cut between lines."""
    lines = source.kind in ("jsonl", "chat") or source.unit == "line"
    if source.kind == "chat" and source.format.startswith("oasst"):
        return False  # messages of one tree may lie anywhere in the file
    return lines and not is_packed(path) and by_name(source, path) == source.kind


@contextlib.contextmanager
def opened(path: str) -> Iterator[IO[bytes] | io.BufferedIOBase]:
    """Opens a file for reading its content, decompressed."""
    compression = formats.format_of(path).compression
    with filesystems.open_input(path) as raw:
        if not compression:
            yield raw
            return
        head = raw.read(16)
        if head and formats.magic_of(head) != compression:
            raise DataError(
                f"{path}: not {compression}, as its name says: it begins with {head[:8].hex(' ')}. "
                "Rename the file, or leave it out."
            )
        raw.seek(0)
        try:
            yield io.BufferedReader(formats.decompressed(raw, compression, path), _BLOCK)
        except formats.damage() as e:
            raise DataError(f"{path}: damaged ({e}).") from e
        except OSError as e:
            if e.errno is not None:
                raise
            raise DataError(f"{path}: damaged ({e}).") from e


def _decode(raw: bytes, path: str, start: int, line: int = 0) -> str:
    skip = len(formats.UTF8_BOM) if start == 0 and raw.startswith(formats.UTF8_BOM) else 0
    try:
        return raw[skip:].decode("utf-8")
    except UnicodeDecodeError as e:
        line = line or raw.count(b"\n", 0, skip + e.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 at byte {start + skip + e.start} of the file "
            f"(0x{raw[skip + e.start]:02x}: {e.reason}). Convert the file to UTF-8, for instance "
            "with iconv, or leave it out."
        ) from e


def _text(source: Source, line: str, where: str) -> tuple[str, float | None]:
    """Returns the document in one line of a file, and its score."""
    if source.kind == "text":
        return line.rstrip("\r\n"), None
    try:
        value = json.loads(line.rstrip("\r\n"))
    except json.JSONDecodeError as e:
        raise DataError(
            f"{where}: not a JSON object, column {e.colno} ({e.msg}). Repair or remove the line."
        ) from e
    except (ValueError, RecursionError) as e:  # a number of 5,000 digits, brackets 10,000 deep
        raise DataError(f"{where}: not a JSON object ({e}). Repair or remove the line.") from e
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: expected a JSON object with the field {source.field!r}, "
            f"found {_kind(value)}. Is Source.kind = 'jsonl' right for {source.name!r}?"
        )
    if source.field not in value:
        near = nearest(source.field, value)
        raise DataError(
            f"{where}: no field {source.field!r}; there are {', '.join(sorted(value)) or 'none'}. "
            + (f"Did you mean {near!r}? " if near else "")
            + f"Set Source.field of {source.name!r}, or remove the line."
        )
    text = value[source.field]
    if not isinstance(text, str):
        raise DataError(
            f"{where}: field {source.field!r} holds {_kind(text)}, expected a string. "
            "Repair or remove the line."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise DataError(
            f"{where}: field {source.field!r} holds half of a surrogate pair at character "
            f"{e.start}, which is not a character. Repair or remove the line."
        ) from e
    return text, _score(source, value, where) if source.score else None


def _score(source: Source, value: dict[str, Any], where: str) -> float:
    """Returns the number in the field ``Source.score`` of a line."""
    found: Any = value
    for part in source.score.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if source.classes:
        name = str(found) if isinstance(found, (str, int)) else None
        if name not in source.classes:
            raise DataError(
                f"{where}: label {source.score!r} is {found!r}, expected one of "
                f"{', '.join(source.classes)}. Repair the line, or add to Classification.labels."
            )
        return float(source.classes.index(name))
    number = isinstance(found, (int, float)) and not isinstance(found, bool)
    if not number or not abs(found) < 3e38:  # what float32 holds
        raise DataError(
            f"{where}: score {source.score!r} is {_kind(found)}, expected a finite number. "
            f"Set Source.score of {source.name!r}, or repair or remove the line."
        )
    return float(found)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), "null" if value is None else f"the number {value}"[:60])
