"""Saving and restoring a run: asynchronous, whole or absent, checked, onto any mesh."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from t5x_llm.checkpoint import agree, checksums
from t5x_llm.checkpoint.config import CheckpointConfig
from t5x_llm.checkpoint.folder import Folder
from t5x_llm.checkpoint.lazy import open_arrays
from t5x_llm.checkpoint.reader import read
from t5x_llm.checkpoint.saver import META, STATE, Saver
from t5x_llm.checkpoint.space import save_error, shortage, state_bytes
from t5x_llm.core.errors import CheckpointError
from t5x_llm.core.paths import as_path

_SETTLE_SECONDS = 0.5  # for the threads of a save that failed
_HALF = "half-written: it is being written, or writing or removing it was cut off"


class Checkpointer:
    """Checkpoints of one run directory.

    A checkpoint is a directory named by its step, holding the state (TensorStore), ``meta`` (JSON)
    and the checksums of every file. It is written under a temporary name, renamed, and complete
    once the checksums are there; only then are older ones removed. Whatever stops a save, those
    before it stay. What is read is checked first. Nothing is unpickled.

    In a run of several processes all of them call ``save``, ``wait``, ``verify``,
    ``newest_sound``, ``drop_after``, ``restore`` and ``restore_params``, in the same order.

    Args:
      directory: where they are; local or ``gs://``.
      config: when to save, what to keep; its defaults if None.
      read_only: never writes, so that a run in progress can be read.
      on_damage: called on the first process with (step, what is wrong) of every checkpoint that
        ``newest_sound`` passes over; prints a warning if None.

    Attributes:
      completed: step of the last checkpoint completed by this object, or None.
      folder: the directory as it lies on disk or in an object store.

    Raises:
      CheckpointError: if the directory cannot be made.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        config: CheckpointConfig | None = None,
        read_only: bool = False,
        on_damage: Callable[[int, str], None] | None = None,
    ):
        self.config = config or CheckpointConfig()
        self.directory = as_path(directory)
        if "://" not in str(self.directory):
            self.directory = self.directory.absolute()
        self.folder = Folder(self.directory)
        self.read_only = read_only
        self.completed: int | None = None
        self._bytes = 0  # of the last state saved
        self._on_damage = on_damage or self._warn
        self._saver: Saver | None = None
        self._failed: CheckpointError | None = None  # of the last save
        self._earlier: CheckpointError | None = None  # of one before it, not asked for yet
        self._verdicts: dict[int, str | None] = {}
        self._reported: set[int] = set()
        if not read_only:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise CheckpointError(
                    f"The directory {self.directory} cannot be made: {e.strerror or e}."
                ) from e

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending; half-written ones are not among them."""
        return self.folder.complete()

    def latest_step(self) -> int | None:
        """The newest complete checkpoint, sound or not; None if there is none."""
        return max(self.steps(), default=None)

    def path(self, step: int) -> Any:
        """The directory of a checkpoint."""
        return self.folder.path(step)

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> bool:
        """Starts saving; returns when the state is copied to the host.

        If the save before is still being written, it is waited for; should it have failed,
        ``failure`` says so. This one starts regardless.

        Args:
          step: names the checkpoint.
          state: any pytree of arrays.
          meta: JSON to keep with it.

        Returns:
          False if there is a complete checkpoint of this step already.

        Raises:
          CheckpointError: if this save fails at once; nothing of it stays.
        """
        self._join()
        self._earlier, self._failed = self._failed or self._earlier, None
        there = step in self.steps() and self._verdicts.get(step) is None
        if agree.from_first(there):
            return False
        # It is written in the background, and what it was made of goes on changing.
        kept = json.loads(json.dumps(meta))
        self._verdicts.pop(step, None)
        self._bytes = state_bytes(state)
        try:
            self._start(step, state, kept)
        # Orbax and TensorStore raise many types, plain Exception among them.
        except Exception as e:
            raise self._unsaved(step, e) from e
        if not self.config.asynchronous:
            self.wait()
        return True

    def _start(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts a save where nothing of an earlier one of this step is left.

        The threads of TensorStore may make a failed save's directory once more after its removal.
        """
        saver = self._saver = self._saver or Saver(self._done)
        for last in (False, False, True):
            if agree.primary():
                self.folder.clear(step)
            try:
                saver.start(step, self.path(step), state, meta)
                return
            except FileExistsError:
                if last or jax.process_count() > 1:  # several processes count their meetings alike
                    raise
                time.sleep(_SETTLE_SECONDS)

    def _done(self, step: int, error: Exception | None) -> None:
        """The end of a save, in its thread."""
        if error is not None:
            self._failed = self._unsaved(step, error)
            return
        self.completed = step
        if agree.primary():
            try:
                damaged = {s for s, verdict in self._verdicts.items() if verdict}
                self.folder.retire(self.config.keep, self.config.keep_period, damaged)
            except (OSError, CheckpointError) as e:
                print(f"warning: an old checkpoint cannot be removed: {e}", file=sys.stderr)

    def _unsaved(self, step: int, error: Exception) -> CheckpointError:
        """Removes what a failed save left, and says what is still there."""
        full, kept = shortage(self.directory, error, self._bytes), "no checkpoint is complete"
        with contextlib.suppress(OSError, CheckpointError):  # the next save tries again
            if (last := self.latest_step()) is not None:
                kept = f"step {last} is the last complete"
            if agree.primary():
                self.folder.clear(step)
        reason = f"{full} ({_first_line(error)})" if full else _first_line(error)
        return save_error(step, self.directory, reason, kept, self.config.keep, error)

    def failure(self) -> CheckpointError | None:
        """Returns the failure of a save in the background, once; never waits."""
        if self._earlier is not None:
            earlier, self._earlier = self._earlier, None
            return earlier
        error, self._failed = self._failed, None
        return error

    def _join(self) -> None:
        if self._saver is not None:
            self._saver.join()

    def wait(self) -> None:
        """Waits for the save in progress, if any. Raises CheckpointError if it failed."""
        self._join()
        error, self._failed = self._failed, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Waits, then stops the background threads. Raises CheckpointError if the save failed."""
        try:
            self.wait()
        finally:
            if self._saver is not None:
                self._saver.close()
                self._saver = None

    def verify(self, step: int) -> str | None:
        """Returns what is wrong with a checkpoint; None if all is as it was saved.

        Every file is read, each process reading its share; once per step.
        """
        if step not in self._verdicts:
            found: str | None = _HALF
            if self.folder.is_complete(step):
                index, count = jax.process_index(), jax.process_count()
                found = checksums.check(self.path(step), index, count)
            self._verdicts[step] = agree.first_text(found)
        return self._verdicts[step]

    def newest_sound(
        self,
        at_most: int | None = None,
        accept: Callable[[dict[str, Any]], bool] | None = None,
    ) -> int | None:
        """The newest checkpoint that is complete and undamaged; the same on every process.

        Newer ones that are not are reported through ``on_damage``.

        Args:
          at_most: looks at none of a later step.
          accept: whether a checkpoint will do, by its meta; others are passed over silently.
        """
        found = self._first_sound(reversed(self._within(0, at_most)), accept)
        for step in self.folder.unfinished():
            if (found is None or step > found) and (at_most is None or step <= at_most):
                self._report(step, _HALF)
        return found

    def oldest_sound(
        self, first: int, last: int, accept: Callable[[dict[str, Any]], bool]
    ) -> int | None:
        """Returns the oldest sound one of steps ``first`` to ``last``, or None."""
        return self._first_sound(self._within(first, last), accept)

    def _within(self, first: int, last: int | None) -> list[int]:
        return [s for s in self.steps() if first <= s and (last is None or s <= last)]

    def _first_sound(
        self, steps: Iterable[int], accept: Callable[[dict[str, Any]], bool] | None
    ) -> int | None:
        """Returns the first of ``steps`` that is sound and accepted; reports those that are not."""
        if not agree.primary():
            steps = ()
        # A damaged meta says nothing; it is proposed, and found out.
        proposals = (s for s in steps if not accept or self._damage(s) or accept(self._meta(s)))
        while (step := agree.from_first(next(proposals, -1))) >= 0:
            if (damage := self.verify(step)) is None:
                return step
            self._report(step, damage)
        return None

    def _report(self, step: int, damage: str) -> None:
        if agree.primary() and step not in self._reported:
            self._reported.add(step)
            self._on_damage(step, damage)

    def _warn(self, step: int, damage: str) -> None:
        print(f"warning: {self.path(step)} is passed over: {damage}.", file=sys.stderr)

    def drop_after(self, step: int) -> None:
        """Removes what is newer than ``step``: damaged, half-written, or given up by a rewind."""
        self._join()
        if agree.primary():
            try:
                self.folder.remove_after(step)
            except (OSError, CheckpointError) as e:  # the other processes wait below
                print(f"warning: a newer checkpoint cannot be removed: {e}", file=sys.stderr)
        for known in [*self._verdicts]:
            if known > step:
                del self._verdicts[known]
        self._reported = {known for known in self._reported if known <= step}
        agree.meet(f"t5x_llm.checkpoint.drop_after.{step}")

    def _found(self, step: int | None) -> int:
        """``step``, or the newest sound one; CheckpointError if it is not there."""
        steps = self.steps()
        if step is None and (newest := self.newest_sound()) is not None:
            return newest
        if step is None or step not in steps:
            have = f"there are {', '.join(map(str, steps))}" if steps else "there is none"
            if step is None and steps:
                have += ", all damaged"
            asked = "a complete checkpoint" if step is None else f"step {step}"
            raise CheckpointError(f"No {asked} in {self.directory}: {have}.")
        return step

    def _sound(self, step: int | None) -> int:
        """Returns the step that ``_found`` returns, after it was verified."""
        step = self._found(step)
        if (damage := self.verify(step)) is not None:
            raise self._damaged(step, f"{damage}.")
        return step

    def _damage(self, step: int) -> str | None:
        return checksums.check(self.path(step), under=f"{META}/")

    def _meta(self, step: int) -> dict[str, Any]:
        return json.loads((self.path(step) / META / "metadata").read_text())

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """The JSON saved with a checkpoint (the newest sound one if None).

        Raises:
          CheckpointError: if there is no such checkpoint or its meta is damaged.
        """
        step = self._found(step)
        if (damage := self._damage(step)) is not None:
            raise self._damaged(step, f"{damage}.")
        try:
            return self._meta(step)
        except (OSError, ValueError) as e:
            raise self._damaged(step, _first_line(e)) from e

    def newest_meta(self) -> tuple[int, dict[str, Any]] | None:
        """(step, meta) of the newest complete checkpoint whose meta is sound, or None.

        Quick, and by each process for itself: the arrays are not looked at.
        """
        for step in reversed(self.steps()):
            if self._damage(step) is None:
                return step, self._meta(step)
        return None

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """A state and its meta.

        Args:
          abstract_state: tree of ``jax.ShapeDtypeStruct`` with shardings: each device reads the
            pieces it keeps, on whatever mesh the checkpoint was made.
          step: which; the newest sound one if None.

        Raises:
          CheckpointError: missing, damaged (naming step and path), or of another model (naming
            the parameter).
        """
        step = self._sound(step)
        meta = self.meta(step)
        return self._read(abstract_state, step), meta

    def restore_params(self, abstract_params: Any, step: int | None = None) -> Any:
        """The parameters of a saved ``TrainState`` alone; the optimizer's arrays are not read.

        Args:
          abstract_params: as for ``restore``, but of the field ``params``.
          step: which; the newest sound one if None.

        Raises:
          CheckpointError: as ``restore``.
        """
        return self._read({"params": abstract_params}, self._sound(step), partial=True)["params"]

    def open_params(self, step: int | None = None) -> dict[str, Any]:
        """The parameters of a saved ``TrainState`` as arrays that are read in slices.

        Args:
          step: which; the newest sound one if None.

        Raises:
          CheckpointError: missing or damaged.
        """
        return open_arrays(self.path(self._sound(step)) / STATE, "params")

    def _read(self, abstract: Any, step: int, partial: bool = False) -> Any:
        where = f"The checkpoint {self.path(step)}"
        try:
            return read(self.path(step) / STATE, abstract, where, partial)
        except CheckpointError:
            raise
        # Orbax and TensorStore raise many types, plain Exception among them.
        except Exception as e:
            raise self._damaged(step, _first_line(e)) from e

    def _damaged(self, step: int, reason: str) -> CheckpointError:
        others = [s for s in self.steps() if s != step]
        remedy = (
            f"Other checkpoints here: {', '.join(map(str, others))}."
            if others
            else "There is no other checkpoint here."
        )
        return CheckpointError(
            f"The checkpoint of step {step} cannot be read and is probably damaged: "
            f"{self.path(step)}: {reason} {remedy}"
        )


def _first_line(error: BaseException) -> str:
    """The telling part of an error that may carry pages of specification."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = text.split(" [tensorstore_spec")[0].split(" See full TensorStore details")[0]
    text = f"{type(error).__name__}: {text}"
    return f"{text[:300]}..." if len(text) > 300 else text if text.endswith(".") else f"{text}."


def abstract_on(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """An abstract tree with one sharding everywhere, e.g. a single device, for ``restore``."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
