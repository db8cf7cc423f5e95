"""Space for checkpoints: says in words that a save failed because its disk is full."""

from __future__ import annotations

import errno
import os
from typing import Any

import jax

from t5x_llm.core.errors import CheckpointError
from t5x_llm.core.units import size

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAID = ("no space left", "disk quota exceeded")


def state_bytes(state: Any) -> int:
    """Returns the bytes of a tree of arrays, all devices together, each piece once."""
    return sum(getattr(x, "nbytes", 0) for x in jax.tree.leaves(state))


def free_bytes(directory: Any) -> tuple[int, int] | None:
    """Returns (free, all) bytes of the disk that a directory is on; None for an object store."""
    if "://" in str(directory):
        return None
    path = os.path.abspath(str(directory))
    while not os.path.exists(path):
        path = os.path.dirname(path)
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    free = found.f_bavail * found.f_frsize
    if found.f_files and not found.f_favail:
        free = 0  # no file can be made
    return free, found.f_blocks * found.f_frsize


def shortage(directory: Any, error: BaseException, needed: int) -> str:
    """Returns a sentence if a save failed for want of space, '' if not.

    Call it before what the save left is removed. TensorStore says RESOURCE_EXHAUSTED, which is also
    what JAX says of memory.

    Args:
      directory: where checkpoints are.
      error: the error of the save.
      needed: bytes of a checkpoint.
    """
    exhausted = False
    each: BaseException | None = error
    while each is not None:
        text = str(each).lower()
        exhausted |= isinstance(each, OSError) and each.errno in _FULL
        exhausted |= any(said in text for said in _SAID)
        exhausted |= "resource_exhausted" in text and not isinstance(
            each, jax.errors.JaxRuntimeError
        )
        each = each.__cause__ or each.__context__
    space = free_bytes(directory)
    if space is None:
        return "no space or quota is left there." if exhausted else ""
    free, whole = space
    if not exhausted and free >= needed:
        return ""
    what = "no space left on the disk" if free < needed else "a quota of the disk is reached"
    return (
        f"{what}: {size(free)} of {size(whole)} are free, and a checkpoint takes about "
        f"{size(needed)}."
    )


def save_error(
    step: int, directory: Any, reason: str, kept: str, keep: int, error: Exception
) -> CheckpointError:
    """Returns the error of a save that failed: why, what is still there, and what to do.

    Args:
      step: step of the checkpoint.
      directory: where checkpoints are.
      reason: what happened, in words.
      kept: which checkpoint is the last complete one, in words.
      keep: ``CheckpointConfig.keep``.
      error: the cause.
    """
    said = CheckpointError(
        f"Saving the checkpoint of step {step} to {directory} failed: {reason} Of the earlier ones "
        f"nothing is lost: {kept}. Free space there, keep fewer (CheckpointConfig.keep = {keep}), "
        "or continue in another directory."
    )
    said.__cause__ = error
    return said
