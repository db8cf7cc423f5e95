"""Saving and restoring a run: asynchronous, whole or absent, onto any mesh."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import jax
import orbax.checkpoint as ocp

from t5x_llm.checkpoint.compat import check_tree, leaves
from t5x_llm.core.errors import CheckpointError, check_number
from t5x_llm.core.paths import as_path

_STATE, _META = "state", "meta"


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are made and how many stay.

    Attributes:
      every_steps: steps between checkpoints; 0 saves at the end of the run alone.
      keep: the newest so many are kept.
      keep_period: besides, every checkpoint whose step is a multiple of it stays for good.
      asynchronous: writing goes on while training does; the loop waits for the copy to host alone.
      allow_changes: config fields that may differ from the checkpoint's on resume, for example
        ``('Schedule.peak', 'Optimizer')``.
    """

    every_steps: int = 1000
    keep: int = 3
    keep_period: int | None = None
    asynchronous: bool = True
    allow_changes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_number("CheckpointConfig.every_steps", self.every_steps, low=0, integer=True)
        check_number("CheckpointConfig.keep", self.keep, low=1, integer=True)
        if self.keep_period is not None:
            check_number("CheckpointConfig.keep_period", self.keep_period, low=1, integer=True)


class Checkpointer:
    """The checkpoints of one run directory.

    A checkpoint is a directory named by its step, holding the state (TensorStore) and ``meta``
    (JSON). It is written under a temporary name and renamed when complete, and older ones are
    removed only after that: whatever stops a save, those before it stay. Nothing is unpickled.

    Args:
      directory: where they are; local or ``gs://``.
      config: when to save, what to keep; its defaults if None.
      read_only: never writes, so that a run in progress can be read.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        config: CheckpointConfig | None = None,
        read_only: bool = False,
    ):
        self.config = config or CheckpointConfig()
        self.directory = as_path(directory)
        if "://" not in str(self.directory):
            self.directory = self.directory.absolute()
        self.read_only = read_only
        self._saving: int | None = None
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_names=(_STATE, _META),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self.config.keep,
                keep_period=self.config.keep_period,
                enable_async_checkpointing=self.config.asynchronous,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending; half-written ones are not among them."""
        if not self.directory.exists():
            return []
        found = [int(p.name) for p in self.directory.iterdir() if p.name.isdecimal()]
        return sorted(step for step in found if self._complete(step))

    def latest_step(self) -> int | None:
        """The newest complete checkpoint, or None."""
        return max(self.steps(), default=None)

    def path(self, step: int) -> Any:
        """The directory of a checkpoint."""
        return self.directory / str(step)

    def _complete(self, step: int) -> bool:
        """Whether the save was finished: its commit record is the last thing written."""
        path = self.path(step)
        try:
            record = json.loads((path / "_CHECKPOINT_METADATA").read_text())
            committed = record.get("commit_timestamp_nsecs") is not None
        except (OSError, ValueError, AttributeError):
            return False
        return committed and all((path / item).exists() for item in (_STATE, _META))

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> bool:
        """Starts saving; returns when the state is copied to the host.

        If the save before is still being written, it is waited for.

        Args:
          step: names the checkpoint.
          state: any pytree of arrays.
          meta: JSON to keep with it.

        Returns:
          False if there is a complete checkpoint of this step already.

        Raises:
          CheckpointError: if this save, or the one before, failed.
        """
        self.wait()
        if step in self.steps():
            return False
        # It is written in the background, and what it was made of goes on changing.
        meta = json.loads(json.dumps(meta))
        with self._explained(step):
            if self.path(step).exists():
                self.path(step).rmtree()
            self._manager.reload()
            self._saving = step
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
                ),
                force=True,
            )
        if not self.config.asynchronous:
            self._saving = None
        return True

    def check(self) -> None:
        """Raises CheckpointError if a save in the background has failed; never waits."""
        with self._explained(self._saving):
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits for the save in progress, if any. Raises CheckpointError if it failed."""
        with self._explained(self._saving):
            self._manager.wait_until_finished()
        self._saving = None

    def close(self) -> None:
        """Waits, then stops the background threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _explained(self, step: int | None) -> _Explained:
        return _Explained(self, step)

    def _found(self, step: int | None) -> int:
        """``step``, or the newest; CheckpointError if it is not there."""
        steps = self.steps()
        if step is None and steps:
            return steps[-1]
        if step is None or step not in steps:
            have = f"there are {', '.join(map(str, steps))}" if steps else "there is none"
            asked = "a complete checkpoint" if step is None else f"step {step}"
            raise CheckpointError(f"No {asked} in {self.directory}: {have}.")
        return step

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """The JSON saved with a checkpoint (the newest if None).

        Raises:
          CheckpointError: if there is no such checkpoint or it is damaged.
        """
        step = self._found(step)
        try:
            return json.loads((self.path(step) / _META / "metadata").read_text())
        except (OSError, ValueError) as e:
            raise self._damaged(step, e) from e

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """A state and its meta.

        Args:
          abstract_state: tree of ``jax.ShapeDtypeStruct`` with shardings: each device reads the
            pieces it keeps, on whatever mesh the checkpoint was made.
          step: which; the newest if None.

        Raises:
          CheckpointError: missing, damaged (naming step and path), or of another model (naming
            the parameter).
        """
        step = self._found(step)
        meta = self.meta(step)
        return self._read(abstract_state, step), meta

    def restore_params(self, abstract_params: Any, step: int | None = None) -> Any:
        """The parameters of a saved ``TrainState`` alone; the optimizer's arrays are not read.

        Args:
          abstract_params: as for ``restore``, but of the field ``params``.
          step: which; the newest if None.

        Raises:
          CheckpointError: as ``restore``.
        """
        return self._read({"params": abstract_params}, self._found(step), partial=True)["params"]

    def _read(self, abstract: Any, step: int, partial: bool = False) -> Any:
        path, where = self.path(step) / _STATE, f"The checkpoint {self.path(step)}"
        wanted = leaves(abstract)
        reader = ocp.PyTreeCheckpointHandler()
        try:
            saved = leaves(reader.metadata(path).tree)
            if partial:
                tops = {name.split(".")[0] for name in wanted}
                saved = {k: v for k, v in saved.items() if k.split(".")[0] in tops}
            check_tree(saved, wanted, where)
            return reader.restore(
                path,
                args=ocp.args.PyTreeRestore(
                    item=abstract,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                    partial_restore=partial,
                ),
            )
        except CheckpointError:
            raise
        # Orbax and TensorStore raise many types, plain Exception among them.
        except Exception as e:
            raise self._damaged(step, e) from e
        finally:
            reader.close()

    def _damaged(self, step: int, error: Exception) -> CheckpointError:
        others = [s for s in self.steps() if s != step]
        remedy = (
            f"Other checkpoints here: {', '.join(map(str, others))}; to continue from the newest "
            f"of them, move {self.path(step)} away."
            if others
            else "There is no other checkpoint here."
        )
        return CheckpointError(
            f"The checkpoint of step {step} cannot be read and is probably damaged: "
            f"{self.path(step)}: {_first_line(error)} {remedy}"
        )


class _Explained:
    """Turns whatever a save raises into a CheckpointError that says what is still there."""

    def __init__(self, owner: Checkpointer, step: int | None):
        self.owner, self.step = owner, step

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, CheckpointError):
            return
        last = self.owner.latest_step()
        kept = "no checkpoint is complete" if last is None else f"step {last} is the last complete"
        self.owner._saving = None
        raise CheckpointError(
            f"Saving the checkpoint of step {self.step} to {self.owner.directory} failed: "
            f"{_first_line(error)} Of the earlier ones nothing is lost: {kept}. Free space or "
            "choose another directory, then start again with the same command to continue there."
        ) from error


def _first_line(error: BaseException) -> str:
    """The telling part of an error that may carry pages of specification."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = text.split(" [tensorstore_spec")[0].split(" See full TensorStore details")[0]
    text = f"{type(error).__name__}: {text}"
    return f"{text[:300]}..." if len(text) > 300 else text if text.endswith(".") else f"{text}."


def abstract_on(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """An abstract tree with one sharding everywhere, e.g. a single device, for ``restore``."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
