"""Memory of this machine, and what running out of it means to a user."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from t5x_llm.core.errors import OutOfMemory

# What JAX raises; a disk that is full is RESOURCE_EXHAUSTED to other libraries.
_RAISED = ("JaxRuntimeError", "XlaRuntimeError")
_ASKED = re.compile(r"allocat\w* (?:request for )?(\d+(?:\.\d+)? ?[KMGT]?i?B?(?:ytes)?)")
_CGROUP = "/sys/fs/cgroup/memory.max"


def host_memory() -> int:
    """Returns the bytes of memory that processes of this machine, or of this container, have."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open(_CGROUP, encoding="utf-8") as file:
            limit = file.read().strip()
    except OSError:
        return whole
    return min(whole, int(limit)) if limit.isdecimal() else whole


def is_out_of_memory(error: BaseException) -> bool:
    """Returns True for an error of Python, NumPy or JAX that says that memory is used up."""
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    said = "RESOURCE_EXHAUSTED" in text or "Out of memory" in text or "out of memory" in text
    return type(error).__name__ in _RAISED and said


def out_of_memory(error: BaseException, what: str, remedy: str) -> OutOfMemory:
    """Returns the error that tells a user what did not fit and what to change."""
    asked = _ASKED.search(str(error))
    size = f" ({asked[1].strip()} were asked for)" if asked else ""
    return OutOfMemory(f"{what} does not fit into memory{size}. {remedy}")


@contextlib.contextmanager
def memory_explained(what: str, remedy: str) -> Iterator[None]:
    """Turns running out of memory in its body into ``OutOfMemory``.

    Args:
      what: what the body does, as the subject of a sentence.
      remedy: fields that make it smaller.
    """
    try:
        yield
    except Exception as e:
        if not is_out_of_memory(e):
            raise
        raise out_of_memory(e, what, remedy) from e
