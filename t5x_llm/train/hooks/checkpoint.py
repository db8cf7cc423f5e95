"""Saves the run, and resumes it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from t5x_llm.checkpoint import Checkpointer, check_compatible
from t5x_llm.config.describe import to_dict
from t5x_llm.core.errors import CheckpointError, Preempted
from t5x_llm.train.hooks.base import Hook, StepRecord, restore_hooks
from t5x_llm.train.state import TrainState

if TYPE_CHECKING:
    from t5x_llm.train.loop import Trainer


class Checkpoint(Hook):
    """Saves state, data position and the other hooks' states; give it last.

    A save that fails is tried again; the run stops only when none has succeeded for
    ``CheckpointConfig.give_up_minutes``. What one process notices, all learn by the signals that
    the step carries, so that they save together or not at all.

    Args:
      checkpointer: checkpoints of the run.
      config: configs that a resumed run must share, {'model': ..., 'optimizer': ..., ...}.
      preempted: returns True once this process was asked to end; the run is then saved and ended.
      made_from: fingerprints of what is trained on, as JSON for the checkpoint.
    """

    name = "checkpoint"

    def __init__(
        self,
        checkpointer: Checkpointer,
        config: Mapping[str, Any] | None = None,
        preempted: Callable[[], bool] = lambda: False,
        made_from: Mapping[str, Any] | None = None,
    ):
        self.checkpointer, self.preempted = checkpointer, preempted
        self.made_from = made_from
        self.config = {k: to_dict(v) for k, v in (config or {}).items()}
        self._retry_at = 0
        self._error: CheckpointError | None = None
        self._succeeded = time.monotonic()
        self._completed: int | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Starts the clock of the time without a save."""
        self._succeeded = time.monotonic()

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Obeys the signals that the processes sent each other with this step.

        Raises:
          CheckpointError: one of them gives up saving.
        """
        if "preempted" in record.signals:
            trainer.stopping = True
        if "save_failed" in record.signals:
            self._retry_at = trainer.step + self.checkpointer.config.retry_steps
        if "give_up" in record.signals:
            raise self._error or CheckpointError("Another process of the run cannot save it.")

    def on_dispatch(self, trainer: Trainer) -> None:
        """Saves when due, at the last step, and before a preempted run ends.

        Raises:
          Preempted: the run was asked to end, and is saved.
          CheckpointError: the last save fails.
        """
        if self.preempted():
            trainer.signals.add("preempted")
            trainer.stopping = trainer.stopping or jax.process_count() == 1
        self._check_background_save(trainer)
        every = self.checkpointer.config.every_steps
        if trainer.last or trainer.stopping:
            self._save_and_end(trainer)
        elif (every and trainer.step % every == 0) or trainer.step == self._retry_at:
            with trainer.paused("save"):
                self._save(trainer)

    def on_rewind(self, trainer: Trainer) -> None:
        """Forgets the saves of steps that the rewind gave up."""
        self._completed, self._retry_at = self.checkpointer.completed, 0

    def _check_background_save(self, trainer: Trainer) -> None:
        """Reports the save in the background if it has completed or failed."""
        if (failure := self.checkpointer.failure()) is not None:
            self._failed(trainer, failure)
        if self.checkpointer.completed != self._completed:
            self._completed, self._succeeded = self.checkpointer.completed, time.monotonic()
            trainer.report("saved", self._completed)

    def _save(self, trainer: Trainer) -> None:
        start = time.perf_counter()
        try:
            self.checkpointer.save(trainer.step, trainer.saved, self.meta(trainer))
        except CheckpointError as e:
            self._failed(trainer, e)
        else:
            spent = time.perf_counter() - start
            trainer.report("save", seconds=spent, position=trainer.data.position)

    def _failed(self, trainer: Trainer, error: CheckpointError) -> None:
        minutes = (time.monotonic() - self._succeeded) / 60
        limit = self.checkpointer.config.give_up_minutes
        self._error = error
        trainer.signals.add("save_failed")
        if minutes >= limit:
            trainer.signals.add("give_up")
        trainer.report("save_failed", reason=str(error))
        if trainer.primary and minutes < limit:
            print(
                f"warning: {error} Training goes on and the save is tried again; it stops when "
                f"none has succeeded for {limit:g} minutes.",
                file=sys.stderr,
            )

    def _save_and_end(self, trainer: Trainer) -> None:
        """Saves the state that the run ends with, and waits for it to be whole."""
        with trainer.paused("save"):
            while True:
                try:
                    self.checkpointer.save(trainer.step, trainer.saved, self.meta(trainer))
                    self.checkpointer.wait()
                    break
                except CheckpointError as e:
                    self._failed(trainer, e)
                    if "give_up" in trainer.signals or jax.process_count() > 1:
                        raise
                    time.sleep(10)
        trainer.report("save", position=trainer.data.position)
        self._check_background_save(trainer)
        if trainer.stopping and not trainer.last:
            trainer.report("preemption", position=trainer.data.position)
            raise Preempted(
                f"Asked to leave: saved at step {trainer.step}. "
                "The same command continues from there."
            )

    def meta(self, trainer: Trainer) -> dict[str, Any]:
        """Returns the JSON of a checkpoint: all of the run that is not arrays."""
        made_from = {} if self.made_from is None else {"made_from": dict(self.made_from)}
        return made_from | {
            "step": trainer.step,
            "rewinds": trainer.rewinds,
            "data": trainer.data.to_json(),
            "config": self.config,
            "hooks": {hook.name: hook.state() for hook in trainer.hooks},
        }

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Waits for the last save, whatever ended the run."""
        try:
            self.checkpointer.wait()
        except CheckpointError as e:
            if error is None:
                raise
            print(f"warning: {e}", file=sys.stderr)
        self._check_background_save(trainer)


def resume(
    checkpointer: Checkpointer,
    abstract_state: TrainState,
    config: Mapping[str, Any] | None,
    hooks: Sequence[Hook] = (),
    step: int | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Restores the state of a checkpoint, and the hooks; returns its JSON too.

    Args:
      checkpointer: checkpoints of the run.
      abstract_state: the state with shardings, see ``state.with_shardings``.
      config: configs as given to ``Checkpoint``, equal to those the checkpoint was made with; None
        if they have been compared.
      hooks: hooks of the run to come.
      step: step of the checkpoint; the newest if None.

    Returns:
      (state, meta); ``meta['data']`` is the JSON of the ``DataState``.

    Raises:
      CheckpointError: the checkpoint is missing, damaged, or made by a configuration that differs;
        the fields are named.
    """
    step = checkpointer.latest_step() if step is None else step
    meta = checkpointer.meta(step)
    if config is not None:
        check_compatible(
            meta["config"],
            {k: to_dict(v) for k, v in config.items()},
            f"The checkpoint {checkpointer.path(meta['step'])}",
            checkpointer.config.allow_changes,
        )
    state, meta = checkpointer.restore(abstract_state, step)
    restore_hooks(hooks, meta["hooks"])
    return state, meta
