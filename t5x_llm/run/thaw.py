"""Restores a checkpoint into a run that trains other parameters than the run that saved it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from t5x_llm.checkpoint import Checkpointer
from t5x_llm.run.assembled import Assembled
from t5x_llm.train.state import TrainState, abstract_state, place, with_shardings
from t5x_llm.train.task import LmTask


def saved_trained(meta: dict[str, Any]) -> tuple[str, ...]:
    """Returns ``Optimizer.trained`` of the run that saved a checkpoint."""
    return tuple(meta["config"].get("optimizer", {}).get("trained", ()))


def restore_thawed(
    assembled: Assembled, checkpointer: Checkpointer, step: int, trained: tuple[str, ...]
) -> TrainState:
    """Restores a state whose trained parameters were others.

    What is trained now and was then keeps its optimizer state; what is thawed begins with fresh
    one, and that of what is frozen now is dropped. Counts of steps go on.

    Args:
      assembled: the run as it is now.
      checkpointer: checkpoints of the run.
      step: step of the checkpoint.
      trained: ``Optimizer.trained`` of the run that saved it.

    Raises:
      CheckpointError: as ``Checkpointer.restore``.
    """
    run, task, now = assembled.run, assembled.task, assembled.placement
    assert isinstance(task, LmTask)
    optimizer = dataclasses.replace(run.optimizer, trained=trained)
    then = dataclasses.replace(task, trained=optimizer.trained_mask(task.abstract_params()))
    tx = optimizer.build(run.loop.steps, then.trained_part(then.logical_axes()))
    there = place(then, tx, now.mesh, now.rules)
    abstract = with_shardings(abstract_state(then, tx), there.state)
    old, _ = checkpointer.restore(abstract, step)
    fresh = jax.jit(assembled.tx.init, out_shardings=now.state.opt_state)(
        task.trained_part(old.params)
    )
    known = dict(jax.tree_util.tree_flatten_with_path(old.opt_state)[0])
    opt_state = jax.tree_util.tree_map_with_path(lambda path, x: known.get(path, x), fresh)
    return TrainState(old.step, old.params, opt_state)
