"""What a train step carries: step count, parameters, optimizer state."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from t5x_llm.models.model import Model
from t5x_llm.optim import opt_state_shardings
from t5x_llm.parallel import Rules, param_shardings, replicated, use


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree; its paths are the checkpoint contract.

    Attributes:
      step: updates made so far, int32 scalar.
      params: nested dict of master parameters.
      opt_state: what the optax transformation keeps.
    """

    step: Any
    params: Any
    opt_state: Any


def _fresh(model: Model, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    params = model.init(key)
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def abstract_state(model: Model, tx: optax.GradientTransformation) -> TrainState:
    """The state's shapes and dtypes as ``jax.ShapeDtypeStruct``; computes nothing."""
    params = model.abstract_params()
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(step, params, jax.eval_shape(tx.init, params))


def state_shardings(
    model: Model, tx: optax.GradientTransformation, mesh: Mesh, rules: Rules
) -> TrainState:
    """A NamedSharding for every leaf: moments lie as the rules for optimizer state say."""
    whole = replicated(mesh)
    params, axes = model.abstract_params(), model.logical_axes()
    placed, moments = (
        param_shardings(axes, params, mesh, rules, table) for table in ("params", "optimizer")
    )
    if rules.optimizer_on_host:
        moments = jax.tree.map(lambda s: s.with_memory_kind("pinned_host"), moments)
    return TrainState(whole, placed, opt_state_shardings(tx, moments, params, whole))


def on_device(opt_state: Any, rules: Rules) -> Any:
    """Optimizer state where a step can compute with it."""
    if not rules.optimizer_on_host:
        return opt_state
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device), opt_state)


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """The abstract tree with a sharding on every leaf, which is what a restore asks for."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )


def init_state(
    model: Model,
    tx: optax.GradientTransformation,
    key: jax.Array,
    mesh: Mesh,
    rules: Rules,
) -> TrainState:
    """A fresh state, each device computing only the pieces it keeps.

    The values depend on ``key`` alone, not on the mesh.
    """

    def fresh(key: jax.Array) -> TrainState:
        with use(mesh, rules):
            return _fresh(model, tx, key)

    # It runs once: on the CPU a full optimisation would take three times as long as it saves. The
    # values are the same to the bit.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 1} if on_cpu else None
    shardings = state_shardings(model, tx, mesh, rules)
    return jax.jit(fresh, out_shardings=shardings, compiler_options=options)(key)


def state_from_params(
    params: Any,
    model: Model,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    rules: Rules,
) -> TrainState:
    """A state at step 0 around given parameters (an import, an earlier run), placed on the mesh."""
    shardings = state_shardings(model, tx, mesh, rules)
    dtypes = model.abstract_params()
    params = jax.tree.map(
        lambda x, a, s: jax.device_put(jnp.asarray(x, a.dtype), s), params, dtypes, shardings.params
    )
    return TrainState(
        jax.device_put(jnp.zeros((), jnp.int32), shardings.step),
        params,
        jax.jit(tx.init, out_shardings=shardings.opt_state)(params),
    )
