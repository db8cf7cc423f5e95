"""A directory of checkpoints: which are there, which are whole, and removing them."""

from __future__ import annotations

import json
from collections.abc import Container
from typing import Any

from t5x_llm.checkpoint import checksums
from t5x_llm.checkpoint.saver import META, STATE
from t5x_llm.core.errors import CheckpointError

_RECORD = "_CHECKPOINT_METADATA"  # Orbax writes its time of commit here, last of all
_TEMPORARY = ".orbax-checkpoint-tmp"


class Folder:
    """Checkpoints by step, as they lie on disk or in an object store.

    Args:
      directory: an ``epath.Path``; need not exist.

    Every method raises CheckpointError if it cannot be read.
    """

    def __init__(self, directory: Any):
        self.directory = directory

    def path(self, step: int) -> Any:
        """Returns the directory of a step's checkpoint."""
        return self.directory / str(step)

    def complete(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(step for step in self._present() if self.is_complete(step))

    def unfinished(self) -> list[int]:
        """Steps of which something is there, but no complete checkpoint, ascending."""
        found = {*self._present(), *self._temporary().values()}
        return sorted(step for step in found if not self.is_complete(step))

    def is_complete(self, step: int) -> bool:
        """Returns True where the save was finished: its commit record and all checksums exist."""
        path = self.path(step)
        try:
            record = json.loads((path / _RECORD).read_text())
            committed = record.get("commit_timestamp_nsecs") is not None
        except (OSError, ValueError, AttributeError):
            return False
        whole = all((path / item).exists() for item in (STATE, META))
        return committed and whole and bool(checksums.parts(path))

    def _entries(self) -> list[Any]:
        """Lists the directory; to take an unreadable one for empty would lose a run."""
        try:
            return [*self.directory.iterdir()] if self.directory.exists() else []
        except OSError as e:
            raise CheckpointError(
                f"The directory of checkpoints {self.directory} cannot be read: {e.strerror or e}."
            ) from e

    def _present(self) -> list[int]:
        return [int(p.name) for p in self._entries() if p.name.isdecimal()]

    def _temporary(self) -> dict[Any, int]:
        """{directory under its temporary name: step}."""
        found: dict[Any, int] = {}
        for path in self._entries():
            head, mark, _ = path.name.partition(_TEMPORARY)
            if mark and head.isdecimal():
                found[path] = int(head)
        return found

    def _remove(self, step: int) -> None:
        path = self.path(step)
        # First what makes it complete: if this is cut off, the rest is seen to be half.
        (path / _RECORD).unlink(missing_ok=True)
        path.rmtree()

    def clear(self, step: int) -> None:
        """Makes way for a save of ``step``: nothing may be being written."""
        for path in self._temporary():
            path.rmtree()
        if step in self._present():
            self._remove(step)

    def remove_after(self, step: int) -> None:
        """Removes all of later steps, complete or not."""
        for path, its in self._temporary().items():
            if its > step:
                path.rmtree()
        for its in self._present():
            if its > step:
                self._remove(its)

    def retire(self, keep: int, period: int | None, damaged: Container[int]) -> None:
        """Removes what is older than the ``keep`` newest.

        Args:
          keep: of those that are complete and not damaged so many stay.
          period: multiples of it stay too.
          damaged: steps known to be damaged.
        """
        sound = [step for step in self.complete() if step not in damaged]
        if len(sound) <= keep:
            return
        for step in self._present():
            if step < sound[-keep] and not (period and step % period == 0):
                self._remove(step)
