"""Files that are read wherever they lie: on local disk, on gs://, or on what fsspec knows.

``gs://`` and local paths go through epath, as everywhere else. Other schemes (``s3://``,
``https://``, ``hf://``, ``az://``, ...) are read through fsspec if the package that the scheme
needs is installed; nothing is written there. A scheme that cannot be read is refused by name.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import glob
import hashlib
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from t5x_llm.core.errors import ConfigError, DataError, nearest
from t5x_llm.core.paths import WRITTEN, as_path, scheme_of

_WILD = "*?["


class Stat(NamedTuple):
    """Size of a file in bytes, and a number that changes when the file does."""

    size: int
    changed: int


def check_readable(field: str, path: str) -> None:
    """Checks that files of the path's scheme can be read here; looks at no file.

    Raises:
      ConfigError: naming ``field``, for a scheme that nobody knows or whose package is missing.
    """
    scheme = scheme_of(path)
    if scheme in ("", "gs"):
        return
    try:
        _filesystem_class(scheme)
    except (ImportError, ValueError) as e:
        raise ConfigError(
            field, path, "a local path, gs://, or a scheme that fsspec can read here",
            f"{scheme}:// cannot be read: {str(e).rstrip('.')}. Install what it needs, or copy the "
            "files to local disk or gs://.",
        ) from e  # fmt: skip


@functools.cache
def _filesystem_class(scheme: str) -> Any:
    import fsspec

    return fsspec.get_filesystem_class(scheme)


def _filesystem(path: str) -> Any:
    import fsspec

    check_readable("path", path)
    return fsspec.filesystem(scheme_of(path))


def _is_foreign(path: str) -> bool:
    """Returns whether the path is read through fsspec."""
    return scheme_of(path) not in WRITTEN


def plain(path: str) -> str:
    """Returns a local path without ``file://`` and with ``~`` expanded; others as they are."""
    if path[:7].lower() == "file://":
        path = path[7:]
    return path if scheme_of(path) else os.path.expanduser(path)


def open_input(path: str) -> BinaryIO:
    """Opens a file for reading bytes.

    Raises:
      OSError: it cannot be opened.
    """
    opened: Any
    with _explained(path):
        if _is_foreign(path):
            opened = _filesystem(path).open(path, "rb")
        else:
            opened = as_path(plain(path)).open("rb")
    return opened


def read_text(path: str) -> str:
    """Returns the text of a file in UTF-8, without a byte order mark."""
    with open_input(path) as file:
        return file.read().decode("utf-8-sig")


def stat(path: str) -> Stat:
    """Returns size and state of a file.

    Raises:
      OSError: it is not there.
    """
    if not _is_foreign(path):
        path = plain(path)
        if not scheme_of(path):
            local = os.stat(path)
            return Stat(local.st_size, local.st_mtime_ns)
        with _explained(path):
            remote = as_path(path).stat()
        return Stat(remote.length, int(remote.mtime))
    with _explained(path):
        files = _filesystem(path)
        info = files.info(path)
        seen = files.ukey(path)
    digest = hashlib.sha256(str(seen).encode()).digest()
    return Stat(int(info.get("size") or 0), int.from_bytes(digest[:6], "big"))


def exists(path: str) -> bool:
    """Returns whether there is a file, a directory, or a link, even one that leads nowhere."""
    if _is_foreign(path):
        with _explained(path):
            return bool(_filesystem(path).exists(path))
    path = plain(path)
    with _explained(path):
        return as_path(path).exists() or (not scheme_of(path) and os.path.islink(path))


def is_dir(path: str) -> bool:
    """Returns whether the path is a directory."""
    if _is_foreign(path):
        if scheme_of(path) in ("http", "https"):  # a page with links is no directory
            return False
        with _explained(path):
            return bool(_filesystem(path).isdir(path))
    with _explained(path):
        return as_path(plain(path)).is_dir()


def is_pattern(path: str) -> bool:
    """Returns whether a path has wildcards and is not the name of a file as it stands.

    The ``?`` of an address of the web begins its query.
    """
    wild = _WILD.replace("?", "") if scheme_of(path) in ("http", "https") else _WILD
    return any(char in path for char in wild) and not (not scheme_of(path) and exists(path))


def matches(pattern: str) -> list[str]:
    """Returns the files that match a pattern, sorted; ``**`` stands for any number of folders."""
    if _is_foreign(pattern):
        with _explained(pattern):
            files = _filesystem(pattern)
            found = [files.unstrip_protocol(p) for p in files.glob(pattern) if not files.isdir(p)]
        return sorted(found)
    pattern = plain(pattern)
    if not scheme_of(pattern):
        found = [p for p in glob.glob(pattern, recursive=True) if not os.path.isdir(p)]
        return sorted({str(as_path(p)) for p in found})
    if "**" not in pattern:
        fixed, rest = split_pattern(pattern)
        with _explained(pattern):
            return sorted(str(p) for p in as_path(fixed).glob(rest) if not p.is_dir())
    fits = _translated(pattern)
    return sorted(path for path in below(split_pattern(pattern)[0]) if fits.fullmatch(path))


def below(directory: str) -> Iterator[str]:
    """Yields every file below a remote directory."""
    if _is_foreign(directory):
        with _explained(directory):
            files = _filesystem(directory)
            yield from (files.unstrip_protocol(path) for path in files.find(directory))
        return
    with _explained(directory):
        for place, _, names in as_path(directory).walk():
            yield from (str(place / name) for name in names)


def find(owner: str, field: str, pattern: str) -> list[str]:
    """Returns the files of a path or pattern.

    Args:
      owner: what is configured, for errors.
      field: the field that holds the pattern, for errors.
      pattern: path or pattern, local or of a scheme that can be read here.

    Raises:
      ConfigError: a scheme that cannot be read here.
      DataError: a path that is not there, a pattern that matches nothing, a directory.
    """
    check_readable(field, pattern)
    try:
        if is_pattern(pattern):
            if found := matches(pattern):
                return found
            raise DataError(
                f"{owner}: no file matches {pattern!r} ({field}). "
                "Check the pattern; paths are relative to the directory you started in."
            )
        if is_dir(pattern):
            raise DataError(
                f"{owner}: {pattern!r} ({field}) is a directory. "
                f"Name its files, for instance {pattern.rstrip('/')}/**/*.jsonl."
            )
        if not exists(pattern):
            raise missing(owner, field, pattern)
    except OSError as e:
        raise DataError(f"{owner}: {pattern!r} cannot be listed ({e}) ({field}).") from e
    foreign = scheme_of(pattern)
    return [pattern if foreign else str(as_path(plain(pattern)))]


def missing(owner: str, field: str, path: str) -> DataError:
    """Returns the error about a file that is not there, with the nearest name beside it."""
    folder, slash, name = path.rpartition("/")
    near = nearest(name, neighbours(path))
    return DataError(
        f"{owner}: there is no file {path!r} ({field})."
        + (f" Did you mean {folder + slash + near!r}?" if near else "")
    )


def neighbours(path: str) -> list[str]:
    """Returns the names of the files beside a path; none if they cannot be listed."""
    try:
        return [] if _is_foreign(path) else [p.name for p in as_path(plain(path)).parent.iterdir()]
    except OSError:
        return []


def split_pattern(pattern: str) -> tuple[str, str]:
    """Splits a pattern into the directory without wildcards, and the rest."""
    parts = pattern.split("/")
    wild = next(i for i, part in enumerate(parts) if any(c in part for c in _WILD))
    fixed = "/".join(parts[:wild])
    return (fixed or ("/" if pattern.startswith("/") else ".")), "/".join(parts[wild:])


def _translated(pattern: str) -> re.Pattern[str]:
    """Returns a regular expression of a pattern; ``*`` and ``?`` do not match a slash."""
    parts = []
    for part in pattern.split("/"):
        if part == "**":
            parts.append("(?:[^/]+/)*")
            continue
        inner = fnmatch.translate(part).removesuffix(r"\Z").removesuffix(r"\z")
        inner = inner.removeprefix("(?s:").removesuffix(")").replace(".*", "[^/]*")
        parts.append(inner + "/")
    if pattern.endswith("**"):
        return re.compile("".join(parts) + "[^/]+")
    return re.compile("".join(parts).removesuffix("/"))


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Makes an OSError that names the path of whatever a remote filesystem raises.

    TensorFlow's, which reads gs://, and those of fsspec each have errors of their own.
    """
    try:
        yield
    except (OSError, ConfigError, DataError):
        raise
    except Exception as e:
        said = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        raise OSError(f"{path} cannot be read ({said})") from e
