"""Parts of a corpus: files of bounded size, one JSON object a line, there whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator
from typing import IO, Any

from t5x_llm.core.paths import as_path
from t5x_llm.data.clean.document import Document

_LEVEL = 3
# More documents than this make a part, however short they are.
DOCUMENTS = 1 << 16


@dataclasses.dataclass(frozen=True)
class CorpusPart:
    """One file of documents.

    Attributes:
      file: name of the file.
      documents: number of documents.
      bytes: UTF-8 bytes of their texts.
      sha256: SHA-256 of the file, hex.
    """

    file: str
    documents: int
    bytes: int
    sha256: str


def dump_parts(parts: list[CorpusPart]) -> str:
    """Returns parts as JSON: lists of their fields."""
    return json.dumps([dataclasses.astuple(part) for part in parts])


class _Hashed:
    """File that hashes the bytes written to it."""

    def __init__(self, file: IO[bytes]):
        self._file, self.hash = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()


class PartWriter:
    """Writes documents into ``<name>-000.jsonl.zst``, ``<name>-001.jsonl.zst`` and so on.

    Args:
      folder: directory of the files.
      name: name of the files.
      compression: ``zst`` or ``none``.
      most: bytes of text in a part, about; None makes one part, ``<name>.jsonl.zst``.
    """

    def __init__(self, folder: str, name: str, compression: str, most: int | None):
        self._folder, self._name, self._zst, self._most = folder, name, compression == "zst", most
        self._parts: list[CorpusPart] = []
        self._file: Any = None

    def write(self, document: Document) -> None:
        """Adds a document."""
        if self._file is None:
            self._begin()
        record = {
            "text": document.text,
            "id": document.id,
            "source": document.id.partition("/")[0],
            "meta": document.meta,
        }
        self._out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._documents += 1
        self._bytes += len(document.text.encode())
        most = self._most
        if most is not None and (self._bytes >= most or self._documents >= DOCUMENTS):
            self._end()

    def close(self) -> list[CorpusPart]:
        """Closes the last part and returns all parts, in order."""
        if self._file is not None:
            self._end()
        return self._parts

    def _begin(self) -> None:
        self._documents = self._bytes = 0
        number = "" if self._most is None else f"-{len(self._parts):03d}"
        name = f"{self._name}{number}.jsonl{'.zst' if self._zst else ''}"
        self._target = as_path(self._folder) / name
        self._temporary = self._target.parent / f".{name}.tmp"
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._temporary.open("wb")
        self._hashed = _Hashed(self._file)
        self._out: Any = self._hashed
        if self._zst:
            import zstandard

            compressor: Any = zstandard.ZstdCompressor(_LEVEL)
            self._out = compressor.stream_writer(self._hashed, closefd=False)

    def _end(self) -> None:
        if self._zst:
            self._out.close()
        self._file.close()
        self._file = None
        self._temporary.replace(self._target)
        digest = self._hashed.hash.hexdigest()
        self._parts.append(CorpusPart(self._target.name, self._documents, self._bytes, digest))


def read_part(path: str) -> Iterator[Document]:
    """Yields the documents of a part, in order."""
    with as_path(path).open("rb") as raw:
        file: Any = raw
        if path.endswith(".zst"):
            import zstandard

            source: Any = raw
            file = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(source))
        for line in file:
            record = json.loads(line)
            yield Document(record["id"], record["text"], record["meta"])


class LineWriter:
    """Writer of JSON lines that appear at ``path`` when it is closed; a context manager."""

    def __init__(self, path: str):
        self._target = as_path(path)
        self._temporary = self._target.parent / f".{self._target.name}.tmp"
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._temporary.open("wb")

    def __enter__(self) -> LineWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._file.close()
        if kind is None:
            self._temporary.replace(self._target)

    def write(self, **fields: object) -> None:
        """Adds an object."""
        line = json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace")
        self._file.write(line + b"\n")

    def copy(self, path: str) -> None:
        """Adds the lines of another file."""
        with as_path(path).open("rb") as file:
            while block := file.read(1 << 20):
                self._file.write(block)
