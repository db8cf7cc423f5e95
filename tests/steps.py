"""A train step of a model on a mesh, with all that belongs to it."""

import dataclasses
from typing import Any

import jax

from t5x_llm.models.model import Model
from t5x_llm.train.state import Placement, abstract_state, init_state, place, with_shardings
from t5x_llm.train.step import StepOptions, make_train_step
from t5x_llm.train.task import LmTask, TrainTask


@dataclasses.dataclass
class Prepared:
    """The parts, and states that fit them."""

    model: Model
    task: TrainTask
    tx: Any
    placement: Placement
    step: Any

    @property
    def mesh(self):
        return self.placement.mesh

    @property
    def rules(self):
        return self.placement.rules

    def abstract(self):
        """The state's shapes, with shardings."""
        return with_shardings(abstract_state(self.task, self.tx), self.placement.state)

    def init(self, seed=0):
        """A fresh state."""
        return init_state(self.task, self.tx, jax.random.key(seed), self.placement)


def prepare(
    model, optimizer, mesh, rules, *, steps=10, sources=("a", "b"), tx=None, task=None, **options
):
    """Prepares a step of next-token prediction, or of another task.

    Args:
      model: a ``Model``.
      optimizer: an ``Optimizer``.
      mesh: devices.
      rules: how logical axes lie on them.
      steps: of the run.
      sources: of batches.
      tx: instead of the optimizer's own.
      task: instead of next-token prediction.
      **options: those of ``StepOptions``, and fields of ``LmTask``.
    """
    names = {f.name for f in dataclasses.fields(StepOptions)}
    chosen = {k: options.pop(k) for k in list(options) if k in names}
    if task is None:
        trained = optimizer.trained_mask(model.abstract_params())
        task = LmTask(model, 16, tuple(sources), trained=trained, **options)
    tx = tx or optimizer.build(steps, task.trained_part(task.logical_axes()))
    placement = place(task, tx, mesh, rules)
    schedule = optimizer.schedule.build(steps)
    step = make_train_step(task, tx, placement, StepOptions(schedule, **chosen))
    return Prepared(model, task, tx, placement, step)
