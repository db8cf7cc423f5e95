"""Base of hooks: what is attached to a run, and when it is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from t5x_llm.train.loop import Trainer
    from t5x_llm.train.step import Control


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """Record of one step, made once its metrics have come from the device.

    Attributes:
      step: number of the step; the first is 1.
      position: examples of the data stream consumed, this step included.
      size: rows of its batch.
      values: means of the task's sums over its unit, the unit itself, grad_norm, learning_rate; of
        a guarded step also skipped.
      sums: the task's other sums and their weights, float32, scalars or one entry a label.
      seconds: time since the step before was done, without pauses for evaluation and saving.
      waited: seconds of those in which the loop waited for data.
      compiled: True if the step was compiled in this time, which makes ``seconds`` no measure.
      signals: names of ``step.SIGNALS`` that some process sent with it; the same on all.
    """

    step: int
    position: int
    size: int
    values: dict[str, float]
    sums: dict[str, np.ndarray]
    seconds: float
    waited: float
    compiled: bool
    signals: tuple[str, ...] = ()


Results = dict[str, dict[str, float]]


class Hook:
    """Base of all hooks; override what is needed.

    Hooks are called in the order in which they were given. One that saves the others' state comes
    last. What must survive a restart is in ``state``.
    """

    name = "hook"

    def control(self, trainer: Trainer, step: int) -> Control | None:
        """Returns the ``Control`` of a step, or None; the first hook that has one decides."""
        return None

    def on_start(self, trainer: Trainer) -> None:
        """Runs before the first step, after a restore."""

    def on_dispatch(self, trainer: Trainer) -> None:
        """Runs after each step was handed to the device; ``trainer.state`` is that step's.

        The device is still at work: a hook that reads arrays here enters ``trainer.paused(name)``,
        which first lets all metrics arrive.
        """

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Runs when the metrics of a step have arrived, in order, some steps behind the device."""

    def on_eval(self, trainer: Trainer, results: Results) -> None:
        """Runs when an evaluation at ``trainer.step`` is done: {source: {measure: value}}."""

    def on_rewind(self, trainer: Trainer) -> None:
        """Runs after a rewind: ``trainer`` is at an earlier step, and ``restore`` was called."""

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Runs once, at the end; ``error`` is what ended the run early."""

    def state(self) -> dict[str, Any]:
        """Returns JSON that ``restore`` continues from."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from the ``state`` of an earlier process."""


def restore_hooks(hooks: Sequence[Hook], states: Mapping[str, Any]) -> None:
    """Gives every hook its state, by name; one that has none there stays as it is."""
    for hook in hooks:
        if hook.name in states:
            hook.restore(states[hook.name])
