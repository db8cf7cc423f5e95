"""Documents from text and jsonl files, and the cutting of files into jobs. No TensorFlow.

A job is some 8 MB of input: stretches of lines of large files, or several small files. Which jobs
there are depends on the files alone, so any number of workers makes the same store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from etils import epath

from t5x_llm.core.errors import DataError, nearest
from t5x_llm.core.paths import as_path, here_or_shipped
from t5x_llm.data.sources import Source
from t5x_llm.data.zstd import ZstdFile

JOB_BYTES = 8 << 20
_BLOCK = 1 << 20
_BOM = b"\xef\xbb\xbf"


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
class Stretch:
    """Whole lines of a file, bytes [start, stop); ``line`` is the number of the first line."""

    file: int
    path: str
    start: int
    stop: int
    line: int


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
        path = as_path(pattern)
        if any(c in pattern for c in "*?["):
            fixed, _, rest = split_glob(pattern)
            matches = [str(p) for p in as_path(fixed or ".").glob(rest) if not p.is_dir()]
            if not matches:
                raise DataError(
                    f"Source {source.name!r}: no file matches {pattern!r} (Source.files). "
                    "Check the pattern; paths are relative to the directory you started in."
                )
            found.update(matches)
        elif path.is_dir():
            raise DataError(
                f"Source {source.name!r}: {pattern!r} (Source.files) is a directory. "
                f"Name its files, for instance {pattern.rstrip('/')}/*.{_suffix(source)}."
            )
        elif not path.exists():
            near = nearest(path.name, neighbours(path))
            raise DataError(
                f"Source {source.name!r}: there is no file {pattern!r} (Source.files)."
                + (f" Did you mean {str(path.parent / near)!r}?" if near else "")
            )
        else:
            found.add(str(path))
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
        with as_path(path).open("rb") as file:
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
            with _opened(stretch.path) as file:
                packed = is_packed(stretch.path)
                if source.kind == "text" and source.unit == "file":
                    raw = file.read()
                    text = _decode(raw, stretch.path, 0)
                    progress(stretch.stop)
                    if text:
                        yield SourceDocument(text, stretch.file, 1)
                    continue
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
                    text = _decode(raw, stretch.path, position, number)
                    if text.strip():
                        text, score = _text(source, text, f"{stretch.path}:{number}")
                        if text:
                            yield SourceDocument(text, stretch.file, number, score)
                    position, number = position + len(raw), number + 1
                    progress(0 if packed else len(raw))
        except OSError as e:
            raise DataError(f"{stretch.path}: cannot be read ({e.strerror or e}).") from e


def is_packed(path: str) -> bool:
    """Returns whether a file is compressed, and therefore read as a whole."""
    return path.endswith((".gz", ".zst"))


def is_cut(source: Source, path: str) -> bool:
    """Returns whether a file of the source may be cut between lines."""
    return (source.kind == "jsonl" or source.unit == "line") and not is_packed(path)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[bytes] | io.BufferedIOBase]:
    """Opens a file for reading its content, decompressed."""
    with as_path(path).open("rb") as raw:
        if path.endswith(".gz"):
            try:
                yield gzip.GzipFile(fileobj=raw)
            except (EOFError, zlib.error) as e:
                raise DataError(f"{path}: damaged ({e}).") from e
        elif path.endswith(".zst"):
            try:
                import zstandard
            except ImportError as e:
                raise DataError(f"{path}: pip install 't5x-llm[clean]' to read .zst.") from e
            try:
                yield io.BufferedReader(ZstdFile(raw), _BLOCK)
            except (EOFError, zstandard.ZstdError) as e:
                raise DataError(f"{path}: damaged ({e}).") from e
        else:
            yield raw


def _decode(raw: bytes, path: str, start: int, line: int = 0) -> str:
    skip = len(_BOM) if start == 0 and raw.startswith(_BOM) else 0
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


def split_glob(pattern: str) -> tuple[str, str, str]:
    """Splits a pattern into the directory without wildcards, "/", and the rest."""
    parts = pattern.split("/")
    wild = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
    fixed = "/".join(parts[:wild])
    return (fixed or "/" if pattern.startswith("/") else fixed), "/", "/".join(parts[wild:])


def _suffix(source: Source) -> str:
    return "jsonl" if source.kind == "jsonl" else "txt"


def neighbours(path: epath.Path) -> list[str]:
    """Returns the names of the files beside ``path``; none if they cannot be listed."""
    try:
        return [p.name for p in path.parent.iterdir()]
    except OSError:
        return []
