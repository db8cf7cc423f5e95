"""Saving the run, and taking it up again."""

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
    from t5x_llm.train.loop import Run


class Checkpoint(Hook):
    """Saves state, data position and the other hooks' states; give it last.

    A save that fails is tried again; the run stops only when none has succeeded for
    ``CheckpointConfig.give_up_minutes``. What one process notices, all learn by the signals that
    the step carries, so that they save together or not at all.

    Args:
      checkpointer: where to.
      config: configs that a resumed run must share, {'model': ..., 'optimizer': ..., ...}.
      preempted: whether this process was told to leave; the run is then saved and left.
    """

    name = "checkpoint"

    def __init__(
        self,
        checkpointer: Checkpointer,
        config: Mapping[str, Any] | None = None,
        preempted: Callable[[], bool] = lambda: False,
    ):
        self.checkpointer, self.preempted = checkpointer, preempted
        self.config = {k: to_dict(v) for k, v in (config or {}).items()}
        self._retry_at = 0
        self._error: CheckpointError | None = None
        self._succeeded = time.monotonic()
        self._completed: int | None = None

    def on_start(self, run: Run) -> None:
        """The time without a save counts from here."""
        self._succeeded = time.monotonic()

    def on_step(self, run: Run, record: StepRecord) -> None:
        """Obeys what the processes told each other with this step.

        Raises:
          CheckpointError: if one of them gives up saving.
        """
        if "preempted" in record.signals:
            run.stopping = True
        if "save_failed" in record.signals:
            self._retry_at = run.step + self.checkpointer.config.retry_steps
        if "give_up" in record.signals:
            raise self._error or CheckpointError("Another process of the run cannot save it.")

    def on_dispatch(self, run: Run) -> None:
        """Saves when due, at the last step, and before leaving.

        Raises:
          Preempted: after that.
          CheckpointError: if the last save fails.
        """
        if self.preempted():
            run.signals.add("preempted")
            run.stopping = run.stopping or jax.process_count() == 1
        self._look(run)
        every = self.checkpointer.config.every_steps
        if run.last or run.stopping:
            self._leave(run)
        elif (every and run.step % every == 0) or run.step == self._retry_at:
            with run.paused("save"):
                self._save(run)

    def on_rewind(self, run: Run) -> None:
        """What was saved on the course given up is no news."""
        self._completed, self._retry_at = self.checkpointer.completed, 0

    def _look(self, run: Run) -> None:
        """Whether the save in the background has come to an end."""
        if (failure := self.checkpointer.failure()) is not None:
            self._failed(run, failure)
        if self.checkpointer.completed != self._completed:
            self._completed, self._succeeded = self.checkpointer.completed, time.monotonic()
            run.tell("saved", self._completed)

    def _save(self, run: Run) -> None:
        start = time.perf_counter()
        try:
            self.checkpointer.save(run.step, run.state, self.meta(run))
        except CheckpointError as e:
            self._failed(run, e)
        else:
            spent = time.perf_counter() - start
            run.tell("save", seconds=spent, position=run.data.position)

    def _failed(self, run: Run, error: CheckpointError) -> None:
        minutes = (time.monotonic() - self._succeeded) / 60
        limit = self.checkpointer.config.give_up_minutes
        self._error = error
        run.signals.add("save_failed")
        if minutes >= limit:
            run.signals.add("give_up")
        run.tell("save_failed", reason=str(error))
        if run.primary and minutes < limit:
            print(
                f"warning: {error} Training goes on and the save is tried again; it stops when "
                f"none has succeeded for {limit:g} minutes.",
                file=sys.stderr,
            )

    def _leave(self, run: Run) -> None:
        """Saves the state that the run ends with, waiting for it to be whole."""
        with run.paused("save"):
            while True:
                try:
                    self.checkpointer.save(run.step, run.state, self.meta(run))
                    self.checkpointer.wait()
                    break
                except CheckpointError as e:
                    self._failed(run, e)
                    if "give_up" in run.signals or jax.process_count() > 1:
                        raise
                    time.sleep(10)
        run.tell("save", position=run.data.position)
        self._look(run)
        if run.stopping and not run.last:
            run.tell("preemption", position=run.data.position)
            raise Preempted(
                f"Asked to leave: saved at step {run.step}. The same command continues from there."
            )

    def meta(self, run: Run) -> dict[str, Any]:
        """All that is not arrays."""
        return {
            "step": run.step,
            "rewinds": run.rewinds,
            "data": run.data.to_json(),
            "config": self.config,
            "hooks": {hook.name: hook.state() for hook in run.hooks},
        }

    def on_end(self, run: Run, error: BaseException | None) -> None:
        """Lets the last save finish, however the run ended."""
        try:
            self.checkpointer.wait()
        except CheckpointError as e:
            if error is None:
                raise
            print(f"warning: {e}", file=sys.stderr)
        self._look(run)


def resume(
    checkpointer: Checkpointer,
    abstract_state: TrainState,
    config: Mapping[str, Any],
    hooks: Sequence[Hook] = (),
    step: int | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """The state of a checkpoint and its meta, hooks restored.

    Args:
      checkpointer: where from.
      abstract_state: with shardings, see ``state.with_shardings``.
      config: as given to ``Checkpoint``; must be what the checkpoint was made with.
      hooks: of the run to come.
      step: which checkpoint; the newest if None.

    Returns:
      (state, meta); ``meta['data']`` is the JSON of the ``DataState``.

    Raises:
      CheckpointError: missing, damaged, or made by a configuration that differs (naming fields).
    """
    step = checkpointer.latest_step() if step is None else step
    meta = checkpointer.meta(step)
    check_compatible(
        meta["config"],
        {k: to_dict(v) for k, v in config.items()},
        f"The checkpoint {checkpointer.path(meta['step'])}",
        checkpointer.config.allow_changes,
    )
    state, meta = checkpointer.restore(abstract_state, step)
    restore_hooks(hooks, meta["hooks"])
    return state, meta
