"""Kind, field, language and size of text files, told by their names and first documents."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Sequence

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.core.paths import as_path
from t5x_llm.data.reading import Stretch, find_files, read
from t5x_llm.data.sources import Source

# Endings, without that of a compression, to ``Source.kind``.
ENDINGS = {"jsonl": "jsonl", "ndjson": "jsonl", "txt": "text", "md": "text", "text": "text"}
_COMPRESSED = ("gz", "zst")
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
    size = sum(as_path(path).stat().length for path in files)
    return Inspected(dataclasses.replace(source, language=language(sample)), files, size, sample)


def language(text: str) -> str:
    """Returns ``zh`` for Chinese script, ``en`` for mostly ASCII letters, else an empty string."""
    letters = sum(map(str.isalpha, text)) or 1
    if len(_CHINESE.findall(text)) > 0.3 * letters:
        return "zh"
    return "en" if len(_LATIN.findall(text)) > 0.98 * letters else ""


def _kind(path: str) -> str:
    *_, ending = _endings(path)
    if ending not in ENDINGS:
        raise ConfigError(
            "--data",
            path,
            f"text or JSON lines: {', '.join(f'.{e}' for e in ENDINGS)}, also as .gz or .zst",
            "HTML, mail, Parquet and WARC become JSON lines with t5x-llm data clean.",
        )
    return ENDINGS[ending]


def _endings(path: str) -> list[str]:
    parts = path.rpartition("/")[2].lower().split(".")
    return parts[:-1] if parts[-1] in _COMPRESSED else parts


def _documents(source: Source, path: str) -> Iterable[str]:
    size = as_path(path).stat().length
    return (document.text for document in read(source, [Stretch(0, path, 0, size, 1)]))


def _field(path: str) -> str:
    """Returns the field of the first object that holds its text: ``text``, or the longest."""
    lines = Source("lines", path, "text", unit="line")
    first = next(iter(_documents(lines, path)), "")
    try:
        value = json.loads(first)
    except ValueError as e:
        raise DataError(f"{path}:1: not a JSON object ({e}).") from e
    texts = {k: v for k, v in value.items() if isinstance(v, str)} if type(value) is dict else {}
    if not texts:
        raise DataError(f"{path}:1: expected a JSON object with a field that holds its text.")
    return "text" if "text" in texts else max(texts, key=lambda k: len(texts[k]))


def _sample(source: Source, files: Sequence[str]) -> str:
    texts, held = [], 0
    for text in itertools.chain.from_iterable(_documents(source, path) for path in files):
        texts.append(text[:_SAMPLE])
        held += len(texts[-1])
        if held >= _SAMPLE:
            break
    return "\n".join(texts)
