"""Checksums of a checkpoint's files: every process writes, and later checks, its share of them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from t5x_llm.core.paths import write_atomic

_PART = re.compile(r"checksums\.(\d+)of(\d+)\.json")
_BLOCK = 1 << 20


def digest(path: Any, flush: bool = False) -> tuple[int, str]:
    """(bytes, SHA-256 in hex) of a file; ``flush`` first brings it from the cache to the disk."""
    total, state = 0, hashlib.sha256()
    # Not hashlib.file_digest: files of an object store lack what it asks for.
    with path.open("rb") as file:
        if flush:
            try:
                os.fsync(file.fileno())
            except (AttributeError, io.UnsupportedOperation):
                pass  # an object store
        while block := file.read(_BLOCK):
            total += len(block)
            state.update(block)
    return total, state.hexdigest()


def names(directory: Any) -> list[str]:
    """Relative paths of a checkpoint's files, sorted; those of the checksums are left out."""
    return sorted(_below(directory, ""))


def _below(directory: Any, prefix: str) -> Iterator[str]:
    for path in directory.iterdir():
        name = path.name
        # NFS keeps a file that is deleted while it is open under such a name.
        if name.startswith(".nfs") or (not prefix and name.lstrip(".").startswith("checksums.")):
            continue
        if path.is_dir():
            yield from _below(path, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}"


def write(directory: Any, index: int, count: int) -> None:
    """Writes the checksums of this process's share; all parts together cover every file.

    Older checkpoints are removed on the strength of this one, so its files are on the disk first.

    Args:
      directory: a checkpoint to which nothing is added any more.
      index: of this process.
      count: of processes.
    """
    share = {name: digest(directory / name, flush=True) for name in names(directory)[index::count]}
    part = directory / f"checksums.{index}of{count}.json"
    write_atomic(part, json.dumps(share, indent=0))
    digest(part, flush=True)


def parts(directory: Any) -> list[Any]:
    """The files of checksums, or [] as long as one is missing."""
    found: dict[int, dict[int, Any]] = {}
    try:
        for path in directory.iterdir():
            if match := _PART.fullmatch(path.name):
                found.setdefault(int(match[2]), {})[int(match[1])] = path
    except OSError:
        return []
    for count, paths in found.items():
        if count and all(i in paths for i in range(count)):
            return [paths[i] for i in range(count)]
    return []


def check(directory: Any, index: int = 0, count: int = 1, under: str = "") -> str | None:
    """Returns what is wrong with a checkpoint, or None.

    Args:
      directory: the checkpoint; which files are there is always looked at.
      index: of this process: it reads its share of the files.
      count: of processes.
      under: looks at files whose relative path begins so, and at no others.
    """
    recorded: dict[str, tuple[int, str]] = {}
    files = parts(directory)
    if not files:
        return "half-written: its checksums are missing"
    for part in files:
        try:
            for name, (size, wanted) in json.loads(part.read_text()).items():
                recorded[name] = (size, wanted)
        except (OSError, ValueError, TypeError, AttributeError):
            return f"{part.name} cannot be read"
    found = set(names(directory))
    listed = sorted(name for name in found | set(recorded) if name.startswith(under))
    for name in listed:
        if name not in found:
            return f"{name} is missing"
        if name not in recorded:
            return f"{name} is not among the files that were saved"
    for name in listed[index::count]:
        try:
            size, got = digest(directory / name)
        except OSError as e:
            return f"{name} cannot be read ({e.strerror or e})"
        if size != recorded[name][0]:
            return f"{name} has {size:,} bytes, {recorded[name][0]:,} were saved"
        if got != recorded[name][1]:
            return f"{name} has changed since it was saved: its checksum is another"
    return None
