"""Saving the run, and taking it up again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from t5x_llm.checkpoint import Checkpointer, check_compatible
from t5x_llm.config.describe import to_dict
from t5x_llm.train.hooks.base import Hook
from t5x_llm.train.state import TrainState

if TYPE_CHECKING:
    from t5x_llm.train.loop import Run


class Checkpoint(Hook):
    """Saves state, data position and the other hooks' states; give it last.

    Args:
      checkpointer: where to.
      config: configs that a resumed run must share, {'model': ..., 'optimizer': ..., ...}.
    """

    name = "checkpoint"

    def __init__(self, checkpointer: Checkpointer, config: Mapping[str, Any] | None = None):
        self.checkpointer = checkpointer
        self.config = {k: to_dict(v) for k, v in (config or {}).items()}

    def on_dispatch(self, run: Run) -> None:
        """Saves when due, and at the last step."""
        every = self.checkpointer.config.every_steps
        if run.last or (every and run.step % every == 0):
            with run.paused("save"):
                self.checkpointer.save(run.step, run.state, self.meta(run))
        else:
            self.checkpointer.check()

    def meta(self, run: Run) -> dict[str, Any]:
        """All that is not arrays."""
        return {
            "step": run.step,
            "data": run.data.to_json(),
            "config": self.config,
            "hooks": {hook.name: hook.state() for hook in run.hooks},
        }

    def on_end(self, run: Run, error: BaseException | None) -> None:
        """Lets the last save finish, however the run ended."""
        self.checkpointer.wait()


def resume(
    checkpointer: Checkpointer,
    abstract_state: TrainState,
    config: Mapping[str, Any],
    hooks: Sequence[Hook],
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
    for hook in hooks:
        if hook.name in meta["hooks"]:
            hook.restore(meta["hooks"][hook.name])
    return state, meta
