"""The files of an input: names for ids, links that run in circles left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from t5x_llm.core import filesystems
from t5x_llm.core.errors import DataError
from t5x_llm.core.paths import as_path, here_or_shipped
from t5x_llm.data.clean.input_config import Input
from t5x_llm.data.clean.read.records import Bad


class File(NamedTuple):
    """File of an input: path, name in ids, size in bytes, and modification time ``changed``."""

    path: str
    name: str
    size: int
    changed: int


def find_files(source: Input) -> tuple[list[File], list[Bad]]:
    """Returns the input's files by path, each once, and the paths that are no files.

    Raises:
      DataError: a path that is not there, a glob or a directory without files.
    """
    found: dict[str, str] = {}  # path to its fault
    for pattern in map(here_or_shipped, source.files):
        matches = dict(_match(source, pattern))
        if not matches:
            raise DataError(
                f"Input {source.name!r}: no file at {pattern!r} (Input.files). "
                "Check the pattern; paths are relative to the directory you started in."
            )
        found.update(matches)
    paths = sorted(found)
    base = os.path.dirname(os.path.commonprefix([f"{p}\0" for p in paths])) if paths else ""
    files, bad = [], []
    for path in paths:
        name = path[len(base) :].lstrip("/") or path
        wrong = found[path]
        try:
            seen = filesystems.stat(path)
        except OSError as e:
            wrong = wrong or f"cannot be read: {e.strerror or e}"
        if wrong:
            reason, _, detail = wrong.partition(": ")
            bad.append(Bad(f"{source.name}/{name}", reason, detail))
        else:
            files.append(File(path, name, *seen))
    return files, bad


def _match(source: Input, pattern: str) -> Iterator[tuple[str, str]]:
    """Yields paths, and the fault of each, empty if there is none."""
    owner = f"Input {source.name!r}"
    try:
        if filesystems.is_pattern(pattern):
            yield from ((path, "") for path in filesystems.matches(pattern))
        elif filesystems.is_dir(pattern):
            yield from _walk(pattern)
        elif not filesystems.exists(pattern):
            raise filesystems.missing(owner, "Input.files", pattern)
        else:
            yield pattern if filesystems.scheme_of(pattern) else _local(pattern), ""
    except OSError as e:
        raise DataError(f"{owner}: {pattern!r} cannot be listed ({e}) (Input.files).") from e


def _local(path: str) -> str:
    return str(as_path(filesystems.plain(path)))


def _walk(root: str) -> Iterator[tuple[str, str]]:
    """Yields all files below a directory; links are followed unless they lead back up."""
    if filesystems.scheme_of(root):
        yield from ((path, "") for path in filesystems.below(root))
        return
    root = _local(root)
    above: dict[str, frozenset[str]] = {root: frozenset()}
    for place, folders, names in os.walk(root, followlinks=True):
        way = above.pop(place) | {os.path.realpath(place)}
        for folder in sorted(folders):
            inner = os.path.join(place, folder)
            if os.path.realpath(inner) in way:
                folders.remove(folder)
                yield inner, f"link in a circle: to {os.path.realpath(inner)}"
            else:
                above[inner] = way
        for name in names:
            inner = os.path.join(place, name)
            plain = os.path.isfile(inner) or os.path.islink(inner)
            yield inner, "" if plain else "not a file: a device, a pipe or a socket"
