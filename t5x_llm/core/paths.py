"""Paths that work on local disk and on gs://, and writes that are whole or absent."""

from __future__ import annotations

import json
import os
import pathlib
import re
import uuid
from typing import Any

from etils import epath

from t5x_llm.core.errors import ConfigError

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
WRITTEN = ("", "gs")  # schemes of what is written; "" is local disk


def as_path(path: str | os.PathLike[str]) -> epath.Path:
    """``path`` as an epath.Path, with ``~`` expanded and without ``file://``."""
    text = os.fspath(path)
    return epath.Path(text[7:] if text[:7].lower() == "file://" else text).expanduser()


def scheme_of(path: str) -> str:
    """Returns the scheme of a path in lower case, without ``://``; "" for a local path."""
    found = _SCHEME.match(path)
    scheme = found.group(1).lower() if found else ""
    return "" if scheme == "file" else scheme


def check_written(field: str, path: str) -> None:
    """Checks that a path is local or on gs://.

    Raises:
      ConfigError: naming ``field``, for any other scheme.
    """
    if scheme_of(path) not in WRITTEN:
        raise ConfigError(
            field, path, "a local path or gs://",
            f"Nothing can be written to {scheme_of(path)}://; choose another directory and copy it "
            "afterwards.",
        )  # fmt: skip


def check_place(field: str, path: str) -> None:
    """Checks that a path of something read is local or on gs://.

    Raises:
      ConfigError: naming ``field``, for an empty path and for any other scheme.
    """
    if not path or scheme_of(path) not in WRITTEN:
        raise ConfigError(
            field, path, "a local path or gs://",
            "Copy it to local disk or gs:// first." if path else "",
        )  # fmt: skip


def _shipped_root(package: pathlib.Path) -> pathlib.Path:
    """Returns the directory of ``configs/`` and ``data/``: in a wheel below the package."""
    inside = package / "shipped"
    return inside if inside.is_dir() else package.parent


SHIPPED = _shipped_root(pathlib.Path(__file__).resolve().parents[1])
_SHIPPED_FOLDERS = ("configs", "data")


def here_or_shipped(pattern: str) -> str:
    """Returns where a path or glob leads: here, or else to the files that come with the package.

    A relative path below ``configs/`` or ``data/`` that is not in the working directory is looked
    for among the shipped files, so that recipes run outside a checkout. Whatever is in neither
    comes back as it was given; so does every other path.
    """
    parts = pathlib.PurePath(pattern).parts
    if len(parts) < 2 or parts[0] not in _SHIPPED_FOLDERS or ".." in parts:
        return pattern

    def there(root: pathlib.Path) -> bool:
        try:
            return (root / pattern).exists() or any(root.glob(pattern))
        except ValueError:  # no pattern that pathlib knows; who reads it says so
            return False

    if there(pathlib.Path()) or not there(SHIPPED):
        return pattern
    return str(SHIPPED / pattern)


def shipped_name(path: str) -> str:
    """Returns the name of a file independent of where the package is installed.

    A shipped file is named from the directory that holds ``configs/`` and ``data/``, any other by
    its path.
    """
    root = f"{SHIPPED}{os.sep}"
    inside = path[len(root) :] if path.startswith(root) else ""
    return inside if inside.split(os.sep)[0] in _SHIPPED_FOLDERS else path


def write_atomic(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Writes ``data`` so that a reader sees the old file or the new one, never half of it."""
    target = as_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        if isinstance(data, bytes):
            temporary.write_bytes(data)
        else:
            temporary.write_text(data, encoding="utf-8")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes ``value`` as indented UTF-8 JSON, atomically."""
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def check_writable(field: str, directory: str | os.PathLike[str]) -> epath.Path:
    """Creates ``directory`` and proves that a file can be written there.

    Raises:
      ConfigError: naming ``field``, if it cannot.
    """
    check_written(field, os.fspath(directory))
    path = as_path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{uuid.uuid4().hex[:8]}"
        probe.write_text("")
        probe.unlink()
    except OSError as e:
        reason = e.strerror or e
        raise ConfigError(
            field,
            str(directory),
            f"a directory that can be written ({reason})",
            "Choose another directory, or free space and give yourself permission to write there.",
        ) from e
    return path
