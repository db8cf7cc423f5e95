"""The layers of a decoder as a pipeline over the mesh axis ``stage``.

All stages run the same program, each with its own units of layers and its own microbatch: a
``vmap`` over an axis on ``stage``, in a scan over the ticks of the schedule. The parameter
tree is that of the model without stages; what stages need is laid out inside the step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t5x_llm.core.errors import ConfigError
from t5x_llm.nn.block import RESIDUAL, Group, GroupConfig, run_units
from t5x_llm.nn.fewbit.stored import Stored
from t5x_llm.nn.layer import Context
from t5x_llm.parallel import constrain, current
from t5x_llm.parallel.pipeline import PipelineSchedule, StageLayout, check_pipelined
from t5x_llm.parallel.stages import (
    STAGE,
    chosen,
    collected,
    finished,
    rotate,
    spread,
    stage_count,
    taken,
    to_stages,
)

_ROWS = ("positions", "segment_ids", "starts", "prefix")  # of Context: [B, T]


def plan(config: Any, mesh: Any, rules: Any) -> tuple[PipelineSchedule, StageLayout] | None:
    """Returns what the stages of a mesh do for a model, and hold of it; None without stages.

    Args:
      config: of the model.
      mesh: the mesh; its devices need not exist.
      rules: with ``pipeline``.

    Raises:
      ConfigError: if the model cannot be cut so.
    """
    if (stages := stage_count(mesh)) == 1:
        return None
    pipeline = check_pipelined(stages, rules.pipeline)
    groups: tuple[GroupConfig, ...] = getattr(config, "groups", ())
    if not getattr(config, "stageable", False) or len(groups) != 1:
        what = f"{len(groups)} kinds of stacks" if len(groups) > 1 else "several levels or sides"
        raise ConfigError(
            "MeshConfig.stage", stages, f"1, as this model has {what}",
            "Stages run one program: a pipeline needs a decoder or encoder that repeats one "
            "pattern of layers from end to end. Use fsdp, tensor or expert instead.",
        )  # fmt: skip
    (group,) = groups
    layout = pipeline.layout(stages, group.n_layers, len(group.blocks))
    return pipeline.schedule(stages), layout


def planned(config: Any) -> tuple[PipelineSchedule, StageLayout] | None:
    """``plan`` for the current mesh."""
    context = current()
    return None if context is None else plan(config, context.mesh, context.rules)


def run_pipeline(
    group: Group,
    x: jax.Array,
    context: Context,
    remat: str,
    schedule: PipelineSchedule,
    layout: StageLayout,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The layers of the one group of a decoder.

    Args:
      group: the layers, as they are without a pipeline.
      x: [B, T, D]; row r is of microbatch r % m.
      context: of all rows, without a cache.
      remat: as elsewhere, for each unit.
      schedule: what stages do.
      layout: what they hold.

    Returns:
      (x [B, T, D] after the last layer, each layer's scalars by microbatch: [m, layers]).

    Raises:
      ConfigError: if the microbatches do not divide the rows.
    """
    m, p = schedule.microbatches, schedule.stages
    if x.shape[0] % m:
        raise ConfigError(
            "Pipeline.microbatches",
            m,
            f"a divisor of the {x.shape[0]} rows that are processed at once",
        )
    graphdefs, params = group.parts()
    params = _placed(params, lambda w, axes: to_stages(w, layout, axes))
    tables = tuple(context.rotary)
    rows = {name: getattr(context, name) for name in _ROWS} | {"rotary": [*context.rotary.values()]}
    rows = jax.tree.map(lambda a: _split(a, m), rows)
    busy = _busy(schedule)
    x = constrain(_split(x, m), (None, *RESIDUAL))
    fed = spread(x, _fed(schedule), RESIDUAL)
    first = (jnp.arange(p) == 0)[:, None, None, None]
    held = None if layout.held.all() else jnp.asarray(layout.held)

    def stage(params: Any, rows: Any, x: jax.Array, held: jax.Array | None) -> Any:
        rotary = dict(zip(tables, rows["rotary"], strict=True))
        mine = dataclasses.replace(context, **rows | {"rotary": rotary})
        x, _, aux = run_units(graphdefs, params, x, mine, None, remat, held)
        return x, aux

    here = current()
    if here is not None and here.rules.pipeline is not None and here.rules.pipeline.remat:
        stage = jax.checkpoint(stage, prevent_cse=False)

    def tick(x: jax.Array, xs: Any) -> tuple[jax.Array, Any]:
        new, fresh, microbatch, repeat = xs
        x = jnp.where(first & fresh, new, x)
        units = _placed(params, lambda w, axes: chosen(w, repeat, axes))
        tokens = jax.tree.map(lambda a: taken(a, microbatch, _row_axes(a)), rows)
        mine = None if held is None else held[jnp.arange(p), repeat]
        y, aux = jax.vmap(stage, spmd_axis_name=STAGE)(units, tokens, x, mine)
        return rotate(y, RESIDUAL), (y, aux)

    ticks = (
        fed,
        jnp.asarray(busy[:, 0, 1] == 0),
        jnp.asarray(busy[..., 0]),
        jnp.asarray(busy[..., 1]),
    )
    # Idle stages compute on real rows, so that nothing they make is infinite.
    _, (ys, auxes) = jax.lax.scan(tick, fed[0], ticks)
    end = np.array([schedule.when(i, layout.repeats - 1, p - 1) for i in range(m)])
    out = jnp.moveaxis(finished(ys, end, RESIDUAL), 0, 1)
    x = constrain(out.reshape(-1, *out.shape[2:]), RESIDUAL)
    where = np.array(
        [[(schedule.when(i, r, s), s, slot) for s, r, slot in layout.places] for i in range(m)]
    )
    return x, _joined(jax.tree.map(lambda a: collected(a, where), auxes))


def microbatch_means(aux: dict[str, jax.Array], mask: jax.Array) -> dict[str, jax.Array]:
    """Scalars of layers by microbatch [m, layers] to [layers]: the mean over predicted tokens.

    So a loss of layers is what it is where gradients add up over as many microbatches.

    Args:
      aux: of ``run_pipeline``.
      mask: [B, T] float32.
    """

    def mean(a: jax.Array) -> jax.Array:
        tokens = jnp.sum(_split(mask, a.shape[0]), axis=(1, 2))
        return (tokens / jnp.maximum(jnp.sum(tokens), 1.0)) @ a

    return {name: mean(a) if a.ndim == 2 else a for name, a in aux.items()}


def _split(x: jax.Array, count: int) -> jax.Array:
    """[B, ...] to [m, B / m, ...]: rows dealt out in turn, so that none changes its device."""
    return jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)


def _placed(params: Any, place: Any) -> Any:
    """Parameters of units, each through ``place`` (array, logical axes with the units' first)."""

    def one(variable: nnx.Variable) -> nnx.Variable:
        axes = ("layers", *variable.get_metadata()["logical"])
        value = variable.get_value()
        if isinstance(value, Stored):
            spare = axes[: len(axes) - len(value.matrix.shape)]
            return variable.replace(value.changed(lambda x, own: place(x, (*spare, *own))))
        return variable.replace(place(value, axes))

    return jax.tree.map(one, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _row_axes(x: jax.Array) -> tuple[str | None, ...]:
    return ("batch", "length") + (None,) * (x.ndim - 3)


def _busy(schedule: PipelineSchedule) -> np.ndarray:
    """(microbatch, repeat) of each stage at each tick, (0, 0) where idle: int [ticks, P, 2]."""
    return np.array(
        [
            [schedule.at(t, s) or (0, 0) for s in range(schedule.stages)]
            for t in range(schedule.ticks)
        ]
    )


def _fed(schedule: PipelineSchedule) -> np.ndarray:
    """The microbatch that enters the first stage at each tick, if one does: int [ticks]."""
    return _busy(schedule)[:, 0, 0]


def _joined(auxes: dict[str, dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """Turns scalars by block and name [m, units] to by name [m, layers], ordered as unstaged."""
    names = {name for aux in auxes.values() for name in aux}
    return {
        name: jnp.concatenate([aux[name] for aux in auxes.values() if name in aux], axis=1)
        for name in sorted(names)
    }
