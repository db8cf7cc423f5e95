"""Makes the processes of a run agree about a checkpoint; alone, a process agrees at once.

All of these are collective: every process calls them, in the same order, from its main thread.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils

_TEXT_BYTES = 512


def primary() -> bool:
    """Returns True in the process that decides and cleans up for all."""
    return jax.process_index() == 0


def from_first(value: int) -> int:
    """The first process's ``value``, everywhere."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def first_text(text: str | None) -> str | None:
    """The lowest process's text that is not None, everywhere; None if all have None."""
    if jax.process_count() == 1:
        return text
    row = np.zeros(_TEXT_BYTES, np.uint8)
    data = (text or "").encode()[:_TEXT_BYTES]
    row[: len(data)] = np.frombuffer(data, np.uint8)
    for got in np.asarray(multihost_utils.process_allgather(row)):
        if said := got.tobytes().rstrip(b"\0").decode(errors="replace"):
            return said
    return None


def meet(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
