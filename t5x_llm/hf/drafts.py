"""Directories in the making: beside their target, locked while their process lives.

A draft is ``.<name>.<token>.tmp``, an earlier export that is being replaced
``.<name>.<token>.old``. The process that writes a draft holds a lock (flock) on the directory
itself, which the kernel lets go when the process ends, however it ends: so what is left of a killed
one can be told from what another process is writing now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import uuid
from typing import NamedTuple


class Draft(NamedTuple):
    """A directory in the making.

    Attributes:
      path: where it is written.
      old: where an earlier export waits while ``path`` takes its place.
      lock: file descriptor of the locked directory.
    """

    path: pathlib.Path
    old: pathlib.Path
    lock: int


def make_draft(final: pathlib.Path) -> Draft:
    """Makes a locked draft of ``final``, in its parent."""
    while True:
        token = uuid.uuid4().hex[:8]
        path = final.parent / f".{final.name}.{token}.tmp"
        path.mkdir()
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # another process took it for abandoned before it was locked
            continue
        with contextlib.suppress(OSError):  # a file system without locks: nothing is removed there
            fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return Draft(path, final.parent / f".{final.name}.{token}.old", lock)
        os.close(lock)


def remove_abandoned(final: pathlib.Path) -> list[pathlib.Path]:
    """Removes what killed processes left of drafts of ``final``; returns what was removed.

    An earlier export that was moved aside is put back where nothing took its place. What a living
    process holds is left alone, and so is everything where the file system knows no locks. Only
    directories of exactly these names are touched, and no links are followed.
    """
    removed: list[pathlib.Path] = []
    named = re.compile(rf"\.{re.escape(final.name)}\.([0-9a-f]{{8}})\.(tmp|old)")
    try:
        found = sorted(p for p in final.parent.iterdir() if named.fullmatch(p.name))
    except OSError:
        return removed
    for path in found:
        if path.is_symlink() or not path.is_dir():
            continue
        if path.suffix == ".old" and path.with_suffix(".tmp").exists():
            continue  # of the draft that is looked at by itself, below or above
        lock = _unheld(path)
        if lock is None:
            continue
        try:
            old = path.with_suffix(".old")
            if old.is_dir() and not os.path.lexists(final):
                old.rename(final)
            for each in (path, old):
                if each.exists():
                    shutil.rmtree(each, ignore_errors=True)
                    removed.append(each)
        finally:
            os.close(lock)
    return removed


def _unheld(directory: pathlib.Path) -> int | None:
    """Returns a descriptor that locks a directory; None where it is held, or cannot be locked."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
