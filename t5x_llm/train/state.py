"""State of a train step: step count, parameters, optimizer state; and its placement."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from t5x_llm.optim import opt_state_shardings
from t5x_llm.parallel import Rules, axes_sharding, param_shardings, replicated, use
from t5x_llm.train.task import TrainTask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """State of training, a pytree whose paths are the checkpoint contract.

    Attributes:
      step: number of updates made so far, int32 scalar.
      params: nested dict of master parameters.
      opt_state: state of the optax transformation, of the trained parameters alone.
    """

    step: Any
    params: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Placement:
    """Placement of a step's state and batches on a mesh.

    Attributes:
      mesh: the devices, or their number along each axis.
      rules: mesh axes of every logical axis.
      state: a NamedSharding for every leaf of the state.
      batch: a NamedSharding for every leaf of a batch.
    """

    mesh: Mesh | AbstractMesh
    rules: Rules
    state: TrainState
    batch: Any

    @property
    def devices(self) -> Mesh:
        """Returns the mesh, whose devices are there or described.

        Raises:
          TypeError: the mesh has sizes alone.
        """
        if not isinstance(self.mesh, Mesh):
            raise TypeError("a mesh of sizes alone has no devices")
        return self.mesh


def place(
    task: TrainTask,
    tx: optax.GradientTransformation,
    mesh: Mesh | AbstractMesh,
    rules: Rules,
) -> Placement:
    """Resolves the shardings of state and batches, by the rules of each.

    Args:
      task: the task, which has the shapes and logical axes of parameters and batches.
      tx: the optimizer of the trained part.
      mesh: the devices, or their number along each axis.
      rules: mesh axes of every logical axis.
    """
    whole = replicated(mesh)
    params, axes = task.abstract_params(), task.logical_axes()
    placed, moments = (
        param_shardings(axes, params, mesh, rules, table) for table in ("params", "optimizer")
    )
    if rules.optimizer_on_host:
        moments = jax.tree.map(lambda s: s.with_memory_kind("pinned_host"), moments)
    moments, trained = task.trained_part(moments), task.trained_part(params)
    state = TrainState(whole, placed, opt_state_shardings(tx, moments, trained, whole))
    batch = jax.tree.map(
        lambda x, names: axes_sharding(mesh, rules, names),
        task.abstract_batch(1),
        task.batch_axes(),
    )
    return Placement(mesh, rules, state, batch)


def abstract_state(task: TrainTask, tx: optax.GradientTransformation) -> TrainState:
    """Returns the state's shapes and dtypes as ``jax.ShapeDtypeStruct``; computes nothing."""
    params = task.abstract_params()
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(step, params, jax.eval_shape(tx.init, task.trained_part(params)))


def on_device(opt_state: Any, rules: Rules) -> Any:
    """Copies optimizer state from host memory to the devices, where the rules keep it there."""
    if not rules.optimizer_on_host:
        return opt_state
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device), opt_state)


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """Returns the abstract tree with a sharding on every leaf, as a restore asks for it."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )


def init_state(
    task: TrainTask, tx: optax.GradientTransformation, key: jax.Array, placement: Placement
) -> TrainState:
    """Makes a fresh state, each device computing only the pieces it keeps.

    The values depend on ``key`` alone, not on the mesh.
    """

    def fresh(key: jax.Array) -> TrainState:
        with use(placement.devices, placement.rules):
            params = task.init(key)
            return TrainState(jnp.zeros((), jnp.int32), params, tx.init(task.trained_part(params)))

    # It runs once: on the CPU a full optimisation would take three times as long as it saves. The
    # values are the same to the bit.
    on_cpu = placement.devices.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 1} if on_cpu else None
    return jax.jit(fresh, out_shardings=placement.state, compiler_options=options)(key)


def state_from_params(
    params: Any, task: TrainTask, tx: optax.GradientTransformation, placement: Placement
) -> TrainState:
    """Makes a state at step 0 around given parameters (an import, an earlier run), on the mesh."""
    shardings = placement.state
    params = jax.tree.map(
        lambda x, a, s: jax.device_put(jnp.asarray(x, a.dtype), s),
        params,
        task.abstract_params(),
        shardings.params,
    )
    return TrainState(
        jax.device_put(jnp.zeros((), jnp.int32), shardings.step),
        params,
        jax.jit(tx.init, out_shardings=shardings.opt_state)(task.trained_part(params)),
    )
