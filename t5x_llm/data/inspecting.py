"""Kind, field, language and size of text files, told by their names and first documents."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence

from t5x_llm.core import filesystems
from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data.formats import SUFFIXES, decompressed, format_of, json_values
from t5x_llm.data.reading import find_files, read
from t5x_llm.data.sources import Source
from t5x_llm.data.stretch import Stretch

_SAMPLE = 1 << 20  # characters looked at
_CHINESE = re.compile(r"[\u3400-\u9fff]")
_LATIN = re.compile(r"[A-Za-z]")


@dataclasses.dataclass(frozen=True)
class Inspected:
    """Files that make one source.

    Attributes:
      source: how they are read, language included where it can be told.
      files: paths, sorted.
      size: bytes of all of them, as they lie on disk.
      sample: text of the first documents, at most a million characters.
    """

    source: Source
    files: tuple[str, ...]
    size: int
    sample: str


def inspect_files(name: str, patterns: Sequence[str]) -> Inspected:
    """Finds files and looks at what they hold.

    Args:
      name: of the source that they make.
      patterns: paths or globs.

    Raises:
      ConfigError: an ending that is not read, or endings of two kinds.
      DataError: a path that is not there, a glob that matches nothing, files without text.
    """
    files = tuple(find_files(Source(name, tuple(patterns))))
    kinds = {path: _kind(path) for path in files}
    if len(set(kinds.values())) > 1:
        one, other = (next(p for p, k in kinds.items() if k == kind) for kind in ("jsonl", "text"))
        expected = f"files of one kind, not {one} and {other} together"
        raise ConfigError("--data", list(patterns), expected, "Give each kind a --data of its own.")
    kind = kinds[files[0]]
    source = Source(name, tuple(patterns), kind, _field(files[0]) if kind == "jsonl" else "text")
    sample = _sample(source, files)
    if not sample.strip():
        raise DataError(f"{files[0]} holds no text.")
    size = sum(filesystems.stat(path).size for path in files)
    return Inspected(dataclasses.replace(source, language=language(sample)), files, size, sample)


def language(text: str) -> str:
    """Returns ``zh`` for Chinese script, ``en`` for mostly ASCII letters, else an empty string."""
    letters = sum(map(str.isalpha, text)) or 1
    if len(_CHINESE.findall(text)) > 0.3 * letters:
        return "zh"
    return "en" if len(_LATIN.findall(text)) > 0.98 * letters else ""


def _kind(path: str) -> str:
    """Returns the ``Source.kind`` that reads a file of this name."""
    kind = format_of(path)
    if not kind.name:
        endings = ", ".join(f".{suffix}" for suffix in SUFFIXES)
        raise ConfigError(
            "--data", path, f"a file of a known format: {endings}, also as .gz, .zst, .bz2 or .xz",
            "Rename it, or make JSON lines of it with t5x-llm data clean.",
        )  # fmt: skip
    if kind.name in ("html", "warc"):
        raise ConfigError(
            "--data", path, "text or records", "Pages hold menus and markup: make JSON lines of "
            "them with t5x-llm data clean, or name them in Source.files yourself.",
        )  # fmt: skip
    return "jsonl" if kind.is_records else "text"


def _documents(source: Source, path: str) -> Iterable[str]:
    size = filesystems.stat(path).size
    return (document.text for document in read(source, [Stretch(0, path, 0, size, 1)]))


def _field(path: str) -> str:
    """Returns the field of the first object that holds its text: ``text``, or the longest."""
    value = _first_record(path)
    texts = {k: v for k, v in value.items() if isinstance(v, str)} if type(value) is dict else {}
    if not texts:
        raise DataError(f"{path}:1: expected a JSON object with a field that holds its text.")
    return "text" if "text" in texts else max(texts, key=lambda k: len(texts[k]))


def _first_record(path: str) -> object:
    kind = format_of(path)
    if kind.name == "parquet":
        import pyarrow.parquet as pq

        with filesystems.open_input(path) as file:
            batch = next(pq.ParquetFile(file).iter_batches(1), None)
        return batch.to_pylist()[0] if batch is not None and len(batch) else {}
    try:
        with filesystems.open_input(path) as file:
            content = decompressed(file, kind.compression, path)
            return next(json_values(content, _SAMPLE), {})
    except (ValueError, EOFError) as e:
        raise DataError(f"{path}:1: not a JSON object ({e}).") from e


def _sample(source: Source, files: Sequence[str]) -> str:
    texts, held = [], 0
    for text in itertools.chain.from_iterable(_documents(source, path) for path in files):
        texts.append(text[:_SAMPLE])
        held += len(texts[-1])
        if held >= _SAMPLE:
            break
    return "\n".join(texts)
