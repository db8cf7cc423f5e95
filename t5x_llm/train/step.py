"""The train step: accumulate gradients over microbatches, then apply them once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x_llm.core.rng import named_key
from t5x_llm.data.batch import Batch
from t5x_llm.models.model import Model, Training
from t5x_llm.optim.freezing import only
from t5x_llm.parallel import Rules, batch_sharding, param_shardings, replicated, use
from t5x_llm.train.state import TrainState, on_device

Metrics = dict[str, jax.Array]
SIGNALS = ("preempted", "save_failed", "give_up")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Control:
    """What the host tells a step besides its batch; the same on all hosts but for ``signals``.

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
    """Where a ``Control`` lies: one row of signals a device, if there are several processes."""
    whole = replicated(mesh)
    spread = NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names)))
    return Control(whole, whole, spread if jax.process_count() > 1 else whole)


def signal_rows(mesh: Mesh, signals: Container[str]) -> Any:
    """``Control.signals`` of this process's ``signals``, as the step takes them."""
    row = np.array([[name in signals for name in SIGNALS]], np.int32)
    if jax.process_count() == 1:
        return row
    mine = {d: np.zeros_like(row) for d in mesh.local_devices}
    mine[mesh.local_devices[0]] = row
    placed = [jax.device_put(value, device) for device, value in mine.items()]
    shape = (mesh.size, len(SIGNALS))
    return jax.make_array_from_single_device_arrays(shape, control_sharding(mesh).signals, placed)


def quiet_control(mesh: Mesh) -> Control:
    """A ``Control`` that changes nothing."""
    return Control(np.float32(np.inf), np.float32(1.0), signal_rows(mesh, ()))


def split_microbatches(batch: Batch, count: int) -> Batch:
    """[B, ...] leaves to [count, B / count, ...].

    Rows are dealt out in turn, so that every microbatch lies on all devices and none moves.
    """
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch
    )


def accumulate(
    model: Model,
    params: Any,
    batch: Batch,
    microbatches: int,
    z_loss: float,
    n_sources: int,
    training: Training | None = None,
    place: Callable[[Any], Any] = lambda grads: grads,
    trained: Any = None,
) -> tuple[Any, Metrics]:
    """Gradients of the mean loss over the whole batch, and its sums.

    The mean is over predicted tokens of all microbatches together, so the result does not depend
    on how many there are (but for rounding). ``place`` lays gradients out. Those of parameters that
    ``trained`` has False for are not computed, and None.

    Returns:
      (float32 gradients, metrics: loss, z_loss, tokens, source_nll [sources], source_tokens, and
      means of what layers tell of themselves, such as a router's balance).
    """
    total = jnp.maximum(jnp.sum(batch.loss_mask), 1.0)

    def loss(params: Any, part: Batch, index: Any = 0) -> tuple[jax.Array, Metrics]:
        value, aux = model.loss(params, part, z_loss, training and training.at(index))
        nll = jnp.sum(aux.pop("nll"), axis=-1)
        tokens = jnp.sum(part.loss_mask, axis=-1)
        sums = {
            "loss": jnp.sum(nll) / total,
            **{name: term / total for name, term in aux.items()},
            "tokens": jnp.sum(tokens),
            "source_nll": jax.ops.segment_sum(nll, part.source, n_sources),
            "source_tokens": jax.ops.segment_sum(tokens, part.source, n_sources),
        }
        return value / total, sums

    def gradient(params: Any, part: Batch, index: Any = 0) -> tuple[Any, Metrics]:
        if trained is None:
            grads, sums = jax.grad(loss, has_aux=True)(params, part, index)
            return place(grads), sums

        def some(free: Any) -> tuple[jax.Array, Metrics]:
            return loss(_filled(free, params), part, index)

        grads, sums = jax.grad(some, has_aux=True)(only(trained, params))
        return place(grads), sums

    if microbatches == 1:
        return gradient(params, batch)

    def add(carry: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, gradient(params, *part)), None

    parts = split_microbatches(batch, microbatches)
    first = jax.tree.map(lambda x: x[0], parts)
    grads, sums = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, params, first)
    )
    return jax.lax.scan(add, (place(grads), sums), (parts, jnp.arange(microbatches)))[0]


def _filled(some: Any, whole: Any) -> Any:
    """``some``, and ``whole`` where it has None."""
    return jax.tree.map(
        lambda x, other: other if x is None else x, some, whole, is_leaf=lambda x: x is None
    )


def make_train_step(
    model: Model,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    mesh: Mesh,
    rules: Rules,
    state_shardings: TrainState,
    n_sources: int,
    microbatches: int = 1,
    z_loss: float = 0.0,
    guarded: bool = False,
    noise_seed: int = 0,
    embed_gradient: optax.Schedule | None = None,
    trained: Any = None,
    compiler_options: dict[str, Any] | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The jitted step (state, batch) -> (state, metrics); the state's buffers are donated.

    Args:
      model: what is trained.
      tx: the optimizer; clipping is part of it.
      schedule: learning rate by step, for the metrics.
      mesh: the devices.
      rules: how logical axes lie on them.
      state_shardings: NamedSharding for every leaf of the state.
      n_sources: sources of the mixture; metrics carry sums for each.
      microbatches: the batch is processed in so many parts.
      z_loss: weight of mean log(Z)^2 (PaLM, arXiv 2204.02311, section 5).
      noise_seed: of the noise that the model's config may ask for while training.
      embed_gradient: by step, the share of the gradient that reaches the embedding table by way of
        the input (GLM-130B, arXiv 2210.02414, section 3.3); None for the model config's.
      trained: tree of bool, which parameters ``tx`` updates; None for all.
      compiler_options: of ``jax.jit``.
      guarded: the step takes a ``Control`` as well: (state, batch, control) -> (state, metrics).

    Returns:
      Metrics are float32 on the device: loss (mean nats per predicted token), z_loss, grad_norm
      (before clipping), learning_rate, tokens, source_nll [sources], source_tokens [sources];
      of a guarded step also skipped (1 if the update was left out) and those of ``SIGNALS``.
    """
    noisy = getattr(model.config, "neftune", None) is not None
    axes, shapes = model.logical_axes(), model.abstract_params()
    added, kept = (
        param_shardings(axes, shapes, mesh, rules, table) for table in ("grads", "optimizer")
    )
    if trained is not None:
        added = only(trained, added)
    lay = jax.lax.with_sharding_constraint

    def train_step(
        state: TrainState, batch: Batch, control: Control | None = None
    ) -> tuple[TrainState, Metrics]:
        training = None
        if noisy or embed_gradient is not None:
            share = None if embed_gradient is None else embed_gradient(state.step)
            training = Training(named_key(noise_seed, "noise", state.step), share)
        with use(mesh, rules):
            grads, metrics = accumulate(
                *(model, state.params, batch, microbatches, z_loss, n_sources, training),
                place=lambda grads: lay(grads, added),
                trained=trained,
            )
            if trained is not None:
                grads = _filled(grads, jax.tree.map(jnp.zeros_like, state.params))
            # A device updates what it has the optimizer's state of.
            grads = lay(grads, kept)
            before = on_device(state.opt_state, rules)
            updates, opt_state = tx.update(grads, before, lay(state.params, kept))
            updates = lay(updates, kept)
            if control is not None:
                updates = jax.tree.map(lambda u: u * control.update_scale, updates)
            params = optax.apply_updates(state.params, updates)
            if trained is not None:
                params = _filled(only(trained, params), state.params)
        norm = metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        if control is not None:
            sound = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
            sound &= norm <= control.norm_limit
            params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(sound, new, old),
                (params, opt_state),
                (state.params, before),
            )
            metrics["learning_rate"] *= control.update_scale
            metrics["skipped"] = 1.0 - sound
            told = jnp.sum(control.signals, axis=0).astype(jnp.float32)
            metrics |= {name: told[i] for i, name in enumerate(SIGNALS)}
        return TrainState(state.step + 1, params, opt_state), metrics

    rows = batch_sharding(mesh, rules, 2)
    batches = Batch(rows, rows, rows, rows, rows, batch_sharding(mesh, rules, 1), extra=rows)
    return jax.jit(
        train_step,
        in_shardings=(state_shardings, batches) + ((control_sharding(mesh),) if guarded else ()),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options,
    )
