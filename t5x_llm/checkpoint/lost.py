"""Checkpoints that were whole and are no more: found, told, and moved aside."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from etils import epath

from t5x_llm.checkpoint import agree, checksums
from t5x_llm.checkpoint.checkpointer import Checkpointer
from t5x_llm.checkpoint.saver import META
from t5x_llm.core.errors import CheckpointError


def once_complete(checkpointer: Checkpointer, saved: Collection[int] = ()) -> list[int]:
    """Returns the steps of checkpoints that are complete, or were so before they were damaged.

    Checksums are written last of all: where some are, a save was complete, whatever is missing now.
    What a save that was cut off left is not among them.

    Args:
      checkpointer: the checkpoints.
      saved: steps known to have been complete, from a record of the run.
    """
    folder = checkpointer.folder
    damaged = [s for s in folder.unfinished() if s in saved or checksums.parts(folder.path(s))]
    return sorted({*folder.complete(), *damaged})


def meta_if_sound(checkpointer: Checkpointer, step: int) -> dict[str, Any] | None:
    """Returns the JSON saved with a checkpoint; None if it is damaged or incomplete."""
    path = checkpointer.path(step)
    if not checkpointer.folder.is_complete(step) or checksums.check(path, under=f"{META}/"):
        return None
    found: dict[str, Any] = json.loads((path / META / "metadata").read_text())
    return found


def set_aside(checkpointer: Checkpointer) -> epath.Path:
    """Moves all checkpoints to a directory beside theirs, which it returns.

    All processes of a run call it, before anything is saved.

    Raises:
      CheckpointError: they cannot be moved.
    """
    directory = checkpointer.directory
    numbers = (directory.parent / f"{directory.name}.damaged_{n}" for n in range(999))
    target = next(path for path in numbers if not path.exists())
    agree.meet("t5x_llm.checkpoint.set_aside")
    failed: str | None = None
    if agree.primary():
        try:
            directory.rename(target)
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            failed = f"{directory} cannot be moved to {target}: {e.strerror or e}."
    if (failed := agree.first_text(failed)) is not None:
        raise CheckpointError(failed)
    return target
