"""Configuration of an input of raw text, and of what may be asked for by one."""

from __future__ import annotations

import codecs
import dataclasses
import re

from t5x_llm.core import filesystems
from t5x_llm.core.errors import ConfigError, check_choice, check_count, check_number

FORMATS = ("auto", "text", "jsonl", "json", "parquet", "warc", "html")
UNITS = ("file", "line", "paragraph")


@dataclasses.dataclass(frozen=True)
class Input:
    """One body of raw text.

    Attributes:
      name: letters, digits and underscores; ids of documents begin with it.
      files: paths or globs, local, gs://, or of a scheme that fsspec reads; ``**`` stands for any
        number of folders, a directory for all files below it.
      format: ``auto`` goes by the suffix: txt and md are text; jsonl and ndjson hold one JSON
        object a line; json the same, or one array of objects; parquet; warc and wet; html and htm.
        Each but parquet may be compressed: gz, zst, bz2, xz. A file whose suffix says nothing
        (``README``, ``changelog.gz``) goes by its content. Any other format reads every file so.
      field: of a record of jsonl or parquet that holds the text.
      keep: further fields of a record, kept in ``Document.meta``.
      unit: what is one document in a text file: ``file``, ``line`` or ``paragraph`` (blank lines
        between).
      encoding: of text and jsonl: ``utf-8``, ``gb18030``, ``big5``; what does not fit is
        quarantined.
      html: whether texts of jsonl and parquet are HTML, to be extracted.
      language: of all its documents if known, in ``meta`` for the steps: ``en``, ``zh``.
      license: of the text, in the manifest.
    """

    name: str
    files: str | tuple[str, ...]
    format: str = "auto"
    field: str = "text"
    keep: tuple[str, ...] = ()
    unit: str = "file"
    encoding: str = "utf-8"
    html: bool = False
    language: str = ""
    license: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"\w+", self.name, re.ASCII):
            raise ConfigError("Input.name", self.name, "letters, digits and underscores")
        files = (self.files,) if isinstance(self.files, str) else tuple(self.files)
        object.__setattr__(self, "files", files)
        if not files or not all(isinstance(f, str) and f for f in files):
            raise ConfigError(
                "Input.files", files, f"at least one path or glob for input {self.name!r}"
            )
        for file in files:
            filesystems.check_readable("Input.files", file)
        keep = (self.keep,) if isinstance(self.keep, str) else tuple(self.keep)
        object.__setattr__(self, "keep", keep)
        check_choice("Input.format", self.format, FORMATS)
        check_choice("Input.unit", self.unit, UNITS)
        _check_encoding(self.encoding)
        if not self.field:
            raise ConfigError("Input.field", self.field, "the name of the field with the text")


def _check_encoding(encoding: str) -> None:
    """Raises ConfigError unless lines end with the byte of a line feed: they are cut undecoded."""
    try:
        known = codecs.lookup(encoding)
        fits = "a\n".encode(encoding) == b"a\n" and isinstance(b"a".decode(encoding), str)
    except (LookupError, TypeError):
        known, fits = None, False
    if known is None or not fits:
        raise ConfigError(
            "Input.encoding", encoding, "an encoding that holds ASCII, such as 'utf-8', 'gb18030'"
        )


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of an input's size; what lies beyond them is quarantined.

    Attributes:
      document_bytes: most bytes of one record or line, and of one text.
      expanded_bytes: most bytes of one compressed file, once decompressed.
      ratio: most decompressed bytes a compressed byte, looked at beyond 64 MB.
    """

    document_bytes: int = 16 << 20
    expanded_bytes: int = 1 << 40
    ratio: float = 200.0

    @classmethod
    def of_own_files(cls) -> Limits:
        """Returns the limits of files that a user names for training: a text of up to 1 GiB."""
        return cls(document_bytes=1 << 30, ratio=1e9)

    def __post_init__(self) -> None:
        check_count("Limits.document_bytes", self.document_bytes, low=1024)
        check_count("Limits.expanded_bytes", self.expanded_bytes, low=1024)
        check_number("Limits.ratio", self.ratio, low=1)
