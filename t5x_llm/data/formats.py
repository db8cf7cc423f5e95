"""Formats of data files: one table of names and first bytes, one opener of what is compressed.

Every place that reads data goes by it: ``Source.files`` of a run, ``Input.files`` of a cleaning,
``EvalSet.files``. What is known here is known everywhere.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from t5x_llm.core.errors import DataError
from t5x_llm.data.zstd import ZstdFile

HEAD = 4096  # bytes of a file by which its format is told
UTF8_BOM = b"\xef\xbb\xbf"
# Suffixes of names, in lower case.
SUFFIXES = {
    **dict.fromkeys(("txt", "text", "md", "markdown"), "text"),
    **dict.fromkeys(("jsonl", "ndjson"), "jsonl"),
    "json": "json",
    **dict.fromkeys(("parquet", "pq"), "parquet"),
    **dict.fromkeys(("warc", "wet"), "warc"),
    **dict.fromkeys(("html", "htm", "xhtml"), "html"),
}
_COMPRESSIONS = {
    "gz": "gz", "gzip": "gz", "zst": "zst", "zstd": "zst", "bz2": "bz2", "xz": "xz", "lzma": "xz",
}  # fmt: skip
# Text that is no prose: it is left out where the content decides.
_NO_PROSE = frozenset(
    "asm bat bib c cc cfg conf cpp cs css csv desktop diff go h hpp htaccess ini ipynb java "
    "js json5 kt less lock log lua m mjs patch php pl po pot ps py r rb rs rtf scss sh sql "
    "srt svg swift tex toml ts tsv tsx vtt xcu xhp xml xsl xslt xsd yaml yml".split()
)
MAGIC = {
    "gz": (b"\x1f\x8b",),
    "bz2": (b"BZh",),
    # A frame, or a skippable one.
    "zst": (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + i, 0x2A, 0x4D, 0x18]) for i in range(16))),
    "xz": (b"\xfd7zXZ\x00", b"\x5d\x00\x00"),
    "zip": (b"PK\x03\x04", b"PK\x05\x06"),
    "PDF": (b"%PDF-",),
    "parquet": (b"PAR1",),
}


class Format(NamedTuple):
    """Format of a file.

    Attributes:
      name: ``text``, ``jsonl``, ``json``, ``parquet``, ``warc``, ``html``, or "" if the file's
        name does not tell. ``json`` is one value that may be spread over lines: an object, or an
        array of them.
      compression: ``gz``, ``zst``, ``bz2``, ``xz`` or "".
    """

    name: str
    compression: str = ""

    @property
    def is_records(self) -> bool:
        """True if its documents are fields of records."""
        return self.name in ("jsonl", "json", "parquet")


def format_of(path: str) -> Format:
    """Returns the format of a file by its name, in whatever letter case."""
    name = re.split(r"[?#]", path)[0] if "://" in path else path
    parts = name.rsplit("/", 1)[-1].lower().split(".")[1:]
    compression = _COMPRESSIONS.get(parts[-1], "") if parts else ""
    if compression:
        parts = parts[:-1]
    return Format(SUFFIXES.get(parts[-1], "") if parts else "", compression)


def suffix_of(path: str) -> str:
    """Returns what follows the last full stop of a file's name, without compression, or ""."""
    parts = path.rsplit("/", 1)[-1].lower().split(".")[1:]
    if parts and parts[-1] in _COMPRESSIONS:
        parts = parts[:-1]
    return parts[-1] if parts else ""


def magic_of(head: bytes) -> str:
    """Returns the name of the format that a file's first bytes are the mark of, or ""."""
    return next((name for name, marks in MAGIC.items() if head.startswith(marks)), "")


def sniff(path: str, head: bytes, encoding: str = "utf-8") -> tuple[str, str]:
    """Tells the format of a file whose name does not, by the first bytes of its content.

    Args:
      path: for its suffix: what is code, configuration or a table by its name is no prose.
      head: decompressed.
      encoding: of text.

    Returns:
      (format, ""), or ("", why there is none).
    """
    suffix = suffix_of(path)
    if suffix in _NO_PROSE:
        return "", f"its suffix, .{suffix}, is of no text for reading"
    if found := magic_of(head):
        return ("parquet", "") if found == "parquet" else ("", f"{found} by its first bytes")
    if head.startswith(b"WARC/"):
        return "warc", ""
    text = decoded_head(head, encoding)
    if text is None or "\x00" in text:
        return "", f"neither name nor content tell; no {encoding.upper()} text"
    start = text.lstrip()
    if re.match(r"<(?:!doctype html|html|head|body)\b", start, re.I):
        return "html", ""
    if re.match(r"<(?:\?xml|!doctype|svg)\b|#!|%!PS|\{\\rtf|[.'](?:\\\"|TH |so )", start, re.I):
        return "", "markup or a program by its first bytes"
    if start.startswith(("{", "[")) and (kind := json_kind(head)):
        return kind, ""
    letters = sum(map(str.isalpha, text))
    if letters < 4 or letters < 0.3 * len("".join(text.split())):
        return "", "neither name nor content tell; few letters"
    return "text", ""


def decoded_head(head: bytes, encoding: str) -> str | None:
    """Decodes a file's first bytes, which may end inside a character; None if they do not fit."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(head.removeprefix(UTF8_BOM))
    except UnicodeDecodeError:
        return None


def json_kind(head: bytes) -> str:
    """Returns ``jsonl`` if content begins with a line that is an object, else ``json`` or ""."""
    start = head.removeprefix(UTF8_BOM).lstrip()
    if start.startswith(b"["):
        return "json"
    if not start.startswith(b"{"):
        return ""
    line, end, _ = start.partition(b"\n")
    if not end and len(head) >= HEAD:  # a line longer than what is known of the file
        return "jsonl"
    try:
        return "jsonl" if isinstance(json.loads(line), dict) else ""
    except json.JSONDecodeError as e:  # a line that only breaks off goes on in the next
        return "json" if end and e.pos >= len(e.doc.rstrip()) else ""
    except (ValueError, RecursionError):
        return ""


def damage() -> tuple[type[Exception], ...]:
    """Returns the errors that a damaged archive raises, beside OSError without a number."""
    errors: tuple[type[Exception], ...] = (
        gzip.BadGzipFile, zlib.error, EOFError, lzma.LZMAError,
    )  # fmt: skip
    with contextlib.suppress(ImportError):
        import zstandard

        errors += (zstandard.ZstdError,)
    return errors


def decompressed(file: Any, compression: str, path: str = "") -> Any:
    """Returns a file of the content of a compressed one, or ``file`` itself.

    Raises:
      DataError: naming ``path``, if it takes a package that is not installed.
    """
    openers: dict[str, Callable[[Any], Any]] = {
        "": lambda raw: raw,
        "gz": lambda raw: gzip.GzipFile(fileobj=raw),
        "bz2": bz2.BZ2File,
        "xz": lzma.LZMAFile,
        "zst": ZstdFile,
    }
    try:
        return openers[compression](file)
    except ImportError as e:
        raise DataError(f"{path}: pip install 't5x-llm[clean]' to read .{compression}.") from e


def read_head(file: IO[bytes], path: str = "") -> tuple[bytes, bytes]:
    """Returns the first bytes of a file, as they stand and decompressed.

    Of an archive that is damaged, what precedes the damage is returned.
    """
    raw = file.read(HEAD)
    compression = format_of(path).compression
    if not compression or magic_of(raw) != compression:
        return raw, raw
    file.seek(0)
    opened, found = decompressed(file, compression, path), b""
    with contextlib.suppress(OSError, *damage()):
        while len(found) < HEAD and (more := opened.read1(HEAD - len(found))):
            found += more
    return raw, found


def json_values(file: IO[bytes], most: int, encoding: str = "utf-8") -> Iterator[Any]:
    """Yields the elements of a JSON array, or the values that follow each other, one at a time.

    Args:
      file: content that is one array or some values.
      most: characters that one value may have.
      encoding: of the content.

    Raises:
      ValueError: the content is not JSON, or a value is longer.
      UnicodeDecodeError: it is not of the encoding.
    """
    decoder, decode = json.JSONDecoder(), codecs.getincrementaldecoder(encoding)()
    blank = re.compile(r"[\s,]*")
    text, inside, ended = "", None, False
    while True:
        text = text[blank.match(text).end() :]  # type: ignore[union-attr]
        if text and inside is None:
            text = text.removeprefix("\ufeff")
            inside = text.startswith("[")
            text = text[1:] if inside else text
            continue
        if text.startswith("]") and inside:
            return
        if text:
            try:
                value, end = decoder.raw_decode(text)
                if ended or end < len(text):  # a number may go on in the next block
                    yield value
                    text = text[end:]
                    continue
            except RecursionError as e:
                raise ValueError("nested too deep") from e
            except json.JSONDecodeError:
                if ended:
                    raise
            if len(text) > most:
                raise ValueError(f"a value of more than {most:,} characters")
        elif ended:
            if inside:
                raise ValueError("the array does not end")
            return
        block = file.read(max(1 << 16, len(text)))
        ended = not block
        text += decode.decode(block, final=ended)
