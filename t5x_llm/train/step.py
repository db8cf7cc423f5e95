"""Train step: accumulates gradients over microbatches, then applies them once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Wrapped

from t5x_llm.models.model import Training
from t5x_llm.parallel import param_shardings, replicated, use
from t5x_llm.train.state import Placement, TrainState, on_device
from t5x_llm.train.task import Sums, TrainTask, check_sums

Metrics = dict[str, jax.Array]
StepFunction = Callable[..., tuple[TrainState, Metrics]]
# (trained parameters, rows, number of the microbatch) -> (scalar to differentiate, sums)
PartLoss = Callable[[Any, Any, jax.Array | int], tuple[jax.Array, Sums]]
SIGNALS = ("preempted", "save_failed", "give_up")
# Names of the metrics that are the step's own.
OWN = ("grad_norm", "learning_rate", "skipped", *SIGNALS)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Control:
    """Inputs of a step from the host besides its batch; equal on all hosts but for ``signals``.

    Attributes:
      norm_limit: float32 scalar; a larger gradient norm, or one that is not finite, leaves
        parameters and optimizer state as they are.
      update_scale: float32 scalar, factor on the update (that is, on the learning rate).
      signals: [devices or 1, len(SIGNALS)] int32, each process's own rows; the step's metrics carry
        their sum, so that all processes learn of it at the same step.
    """

    norm_limit: Any
    update_scale: Any
    signals: Any


def control_sharding(mesh: Mesh) -> Control:
    """Returns the shardings of a ``Control``: a row of signals a device, for several processes."""
    whole = replicated(mesh)
    spread = NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names)))
    return Control(whole, whole, spread if jax.process_count() > 1 else whole)


def signal_rows(mesh: Mesh, signals: Container[str]) -> Any:
    """Returns ``Control.signals`` of this process's ``signals``, as the step takes them."""
    row = np.array([[name in signals for name in SIGNALS]], np.int32)
    if jax.process_count() == 1:
        return row
    mine = {d: np.zeros_like(row) for d in mesh.local_devices}
    mine[mesh.local_devices[0]] = row
    placed = [jax.device_put(value, device) for device, value in mine.items()]
    shape = (mesh.size, len(SIGNALS))
    return jax.make_array_from_single_device_arrays(shape, control_sharding(mesh).signals, placed)


def quiet_control(mesh: Mesh) -> Control:
    """Returns a ``Control`` that changes nothing."""
    return Control(np.float32(np.inf), np.float32(1.0), signal_rows(mesh, ()))


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """Options of a step that are not its task's.

    Attributes:
      schedule: learning rate by step, for the metrics.
      microbatches: number of parts in which the batch is processed.
      guarded: True for a step that takes a ``Control`` as well: (state, batch, control) ->
        (state, metrics).
      compiler_options: compiler options of ``jax.jit``.
    """

    schedule: optax.Schedule
    microbatches: int = 1
    guarded: bool = False
    compiler_options: dict[str, Any] | None = None


def split_microbatches(batch: Any, count: int) -> Any:
    """Splits leaves [B, ...] into [count, B / count, ...].

    Rows are dealt out in turn, so that every microbatch lies on all devices and none moves.
    """
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch
    )


def mean_loss(task: TrainTask, params: Any, batch: Any, training: Training | None) -> PartLoss:
    """Returns the share of the mean loss that a microbatch has, as a function of the trained part.

    Everything is divided by the count of the whole batch, so that the sum over microbatches does
    not depend on their number (but for rounding).

    Args:
      task: the task with the loss.
      params: the whole tree, for what is frozen.
      batch: all rows.
      training: see ``TrainTask.training``.
    """
    total, measures = task.total(batch), task.measures

    def loss(trained: Any, part: Any, index: jax.Array | int) -> tuple[jax.Array, Sums]:
        context = training and training.at(index)
        value, sums = task.loss(task.merged(trained, params), part, context)
        check_sums(sums, measures, OWN)
        return value / total, {k: x / total if measures.is_mean(k) else x for k, x in sums.items()}

    return loss


def accumulate(
    loss: PartLoss,
    trained: Any,
    batch: Any,
    microbatches: int = 1,
    constrain: Callable[[Any], Any] = lambda grads: grads,
) -> tuple[Any, Sums]:
    """Adds up gradients and sums over the microbatches of a batch.

    Args:
      loss: from ``mean_loss``.
      trained: the parameters that are differentiated.
      batch: all rows.
      microbatches: number of parts of the batch.
      constrain: constrains the shardings of gradients.

    Returns:
      (float32 gradients of ``trained``, sums).
    """

    def gradient(trained: Any, part: Any, index: jax.Array | int = 0) -> tuple[Any, Sums]:
        grads, sums = jax.grad(loss, has_aux=True)(trained, part, index)
        return constrain(grads), sums

    if microbatches == 1:
        return gradient(trained, batch)

    def add(total: tuple[Any, Sums], part: tuple[Any, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(trained, *part)), None

    parts = split_microbatches(batch, microbatches)
    first = jax.tree.map(lambda x: x[0], parts)
    grads, sums = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, trained, first)
    )
    return jax.lax.scan(add, (constrain(grads), sums), (parts, jnp.arange(microbatches)))[0]


def make_train_step(
    task: TrainTask,
    tx: optax.GradientTransformation,
    placement: Placement,
    options: StepOptions,
) -> Wrapped:
    """Makes the jitted step (state, batch) -> (state, metrics); the state's buffers are donated.

    Args:
      task: the task to learn.
      tx: the optimizer of the trained part; clipping is part of it.
      placement: shardings of state and batches.
      options: see ``StepOptions``.

    Returns:
      The step. Metrics are float32 on the device: the task's sums, those that its unit weighs
      divided (``Measures.is_mean``), grad_norm (before clipping) and learning_rate; of a guarded
      step also skipped (1 if the update was left out) and those of ``SIGNALS``.
    """
    mesh, rules = placement.devices, placement.rules
    axes, shapes = task.logical_axes(), task.abstract_params()
    grad_shardings, opt_shardings = (
        task.trained_part(param_shardings(axes, shapes, mesh, rules, table))
        for table in ("grads", "optimizer")
    )
    constrain = jax.lax.with_sharding_constraint

    def train_step(
        state: TrainState, batch: Any, control: Control | None = None
    ) -> tuple[TrainState, Metrics]:
        old = task.trained_part(state.params)
        with use(mesh, rules):
            grads, metrics = accumulate(
                mean_loss(task, state.params, batch, task.training(state.step)),
                old,
                batch,
                options.microbatches,
                lambda grads: constrain(grads, grad_shardings),
            )
            # A device updates what it has the optimizer's state of.
            grads = constrain(grads, opt_shardings)
            old_opt_state = on_device(state.opt_state, rules)
            updates, opt_state = tx.update(grads, old_opt_state, constrain(old, opt_shardings))
            updates = constrain(updates, opt_shardings)
            if control is not None:
                updates = jax.tree.map(lambda u: u * control.update_scale, updates)
            trained = task.settled(optax.apply_updates(old, updates), opt_state)
        norm = metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["learning_rate"] = jnp.asarray(options.schedule(state.step), jnp.float32)
        if control is not None:
            sound = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
            sound &= norm <= control.norm_limit
            trained, opt_state = jax.tree.map(
                lambda new, before: jnp.where(sound, new, before),
                (trained, opt_state),
                (old, old_opt_state),
            )
            metrics["learning_rate"] *= control.update_scale
            metrics["skipped"] = 1.0 - sound
            signal_counts = jnp.sum(control.signals, axis=0).astype(jnp.float32)
            metrics |= {name: signal_counts[i] for i, name in enumerate(SIGNALS)}
        params = task.merged(trained, state.params)
        return TrainState(state.step + 1, params, opt_state), metrics

    controls = (control_sharding(mesh),) if options.guarded else ()
    return jax.jit(
        train_step,
        in_shardings=(placement.state, placement.batch, *controls),
        out_shardings=(placement.state, replicated(mesh)),
        donate_argnums=0,
        compiler_options=options.compiler_options,
    )
