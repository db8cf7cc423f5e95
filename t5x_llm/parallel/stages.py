"""Moves arrays between the stages of a pipeline, over the mesh axis ``stage`` alone.

Arrays of all stages have a leading axis P that lies on ``stage``. Collectives are written out, so
that the partitioner has nothing to guess: the transpose of each is the one going the other way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from t5x_llm.parallel.pipeline import StageLayout
from t5x_llm.parallel.rules import LogicalAxes, current, resolve

STAGE = "stage"


def stage_count(mesh: Mesh | None = None) -> int:
    """p: the size of ``stage`` on a mesh, the current one if None; 1 outside ``use``."""
    if mesh is None:
        scope = current()
        if scope is None:
            return 1
        mesh = scope.mesh
    return mesh.shape.get(STAGE, 1)


def _local(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    scope = current()
    assert scope is not None
    return jax.shard_map(function, mesh=scope.mesh, in_specs=in_specs, out_specs=out_specs)


def _compute(axes: LogicalAxes, shape: tuple[int, ...]) -> tuple[Any, ...]:
    scope = current()
    assert scope is not None
    return tuple(resolve(scope.rules.compute, axes, scope.mesh, shape))


def spread(x: jax.Array, order: np.ndarray, axes: LogicalAxes) -> jax.Array:
    """x [m, ...], whole on every stage, to what the first stage reads: [len(order), P, ...].

    Each stage has its own copy, so that what flows back is added up over stages once, at the end.

    Args:
      x: [m, ...].
      order: indices into m.
      axes: logical names of the compute table for the dimensions behind m.
    """
    rest = _compute(axes, x.shape[1:])

    def local(x: jax.Array) -> jax.Array:
        return jax.lax.pcast(x, (STAGE,), to="varying")[order][:, None]

    return _local(local, PartitionSpec(None, *rest), PartitionSpec(None, STAGE, *rest))(x)


def rotate(x: jax.Array, axes: LogicalAxes) -> jax.Array:
    """x [P, ...] with each stage's part at the next stage, the last one's at the first."""
    spec = PartitionSpec(STAGE, *_compute(axes, x.shape[1:]))
    p = stage_count()
    pairs = [(s, (s + 1) % p) for s in range(p)]
    return _local(lambda x: jax.lax.ppermute(x, STAGE, pairs), spec, spec)(x)


def finished(x: jax.Array, ticks: np.ndarray, axes: LogicalAxes) -> jax.Array:
    """Broadcasts the last stage's output of some ticks to all stages: [T, P, ...] to [m, ...].

    Args:
      x: [ticks, P, ...].
      ticks: int [m].
      axes: logical names of the dimensions behind P.
    """
    rest = _compute(axes, x.shape[2:])

    def local(x: jax.Array) -> jax.Array:
        last = jax.lax.axis_index(STAGE) == stage_count() - 1
        return jax.lax.psum(jnp.where(last, x[ticks, 0], 0), STAGE)

    return _local(local, PartitionSpec(None, STAGE, *rest), PartitionSpec(None, *rest))(x)


def collected(x: jax.Array, where: np.ndarray) -> jax.Array:
    """Broadcasts scalars that stages made to all stages.

    Args:
      x: [ticks, P, slots].
      where: int [..., 3], a tick, stage and slot for each.

    Returns:
      [...].
    """
    ticks, stages, slots = np.moveaxis(where, -1, 0)

    def local(x: jax.Array) -> jax.Array:
        mine = jax.lax.axis_index(STAGE) == stages
        return jax.lax.psum(jnp.where(mine, x[ticks, 0, slots], 0), STAGE)

    return _local(local, PartitionSpec(None, STAGE), PartitionSpec())(x)


def taken(x: jax.Array, index: jax.Array, axes: LogicalAxes) -> jax.Array:
    """Each stage's own row of what all have: x [m, ...] and index [P] to [P, ...]."""
    rest = _compute(axes, x.shape[1:])
    return _local(
        lambda x, i: x[i], (PartitionSpec(None, *rest), PartitionSpec(STAGE)),
        PartitionSpec(STAGE, *rest),
    )(x, index)  # fmt: skip


def chosen(w: jax.Array, repeat: jax.Array, axes: LogicalAxes) -> jax.Array:
    """The units each stage works with: w [P, v, slots, ...] and repeat [P] to [P, slots, ...].

    Args:
      w: of ``to_stages``.
      repeat: int [P].
      axes: as given to it.
    """
    rest = _unit_spec(w.shape[3:], axes)
    return _local(
        lambda w, r: w[0][r],
        (PartitionSpec(STAGE, None, None, *rest), PartitionSpec(STAGE)),
        PartitionSpec(STAGE, None, *rest),
    )(w, repeat)


def to_stages(w: jax.Array, layout: StageLayout, axes: LogicalAxes) -> jax.Array:
    """A stack of parameters [units, ...] as the stages need it: [P, v, slots, ...].

    Where the stack is stored over ``stage`` along its units, those that lie with another stage go
    there by collective permutations: none for equal stages without repeats. Where p does not divide
    the units, it is stored over ``stage`` along another dimension, and an all-to-all brings it. Its
    parts over other mesh axes stay as they are. No device holds more than its stage's units.

    Args:
      w: the stack.
      layout: of its units.
      axes: logical names of its dimensions, ``layers`` first.
    """
    scope = current()
    assert scope is not None
    stored = tuple(resolve(scope.rules.params, axes, scope.mesh, w.shape))
    rest = _unit_spec(w.shape[1:], axes)
    p, v, slots = layout.stages, layout.repeats, layout.slots
    units = layout.units.reshape(p, v * slots)
    whole = [i for i, entry in enumerate(stored) if STAGE in _names(entry)]

    def local(w: jax.Array) -> jax.Array:
        if not whole:
            w = jax.lax.pcast(w, (STAGE,), to="varying")
            out = w[jnp.asarray(units)[jax.lax.axis_index(STAGE)]]
        elif whole[0] == 0:
            out = _exchanged(w, layout)
        else:
            i = whole[0]
            out = jax.lax.all_to_all(w[units], STAGE, 0, i + 1, tiled=True)[0]
        return out.reshape(1, v, slots, *out.shape[1:])

    out_spec = PartitionSpec(STAGE, None, None, *rest)
    return _local(local, PartitionSpec(*stored), out_spec)(w)


def _unit_spec(shape: tuple[int, ...], axes: LogicalAxes) -> tuple[Any, ...]:
    """Returns the layout of one unit's dimensions as stored, ``stage`` left out."""
    scope = current()
    assert scope is not None
    sizes = {axis: n for axis, n in scope.mesh.shape.items() if axis != STAGE}
    return tuple(resolve(scope.rules.params, axes[1:], _Sizes(sizes), shape))


class _Sizes:
    """A mesh of which only the sizes are asked."""

    def __init__(self, shape: dict[str, int]):
        self.shape = shape


def _names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _exchanged(w: jax.Array, layout: StageLayout) -> jax.Array:
    """This stage's units [v * slots, ...] of a stack of which each device has its p-th part."""
    p, v, slots = layout.stages, layout.repeats, layout.slots
    each = layout.n_units // p
    if v == 1 and slots == each:
        return w
    me = jax.lax.axis_index(STAGE)
    out = jax.lax.pcast(jnp.zeros((v * slots, *w.shape[1:]), w.dtype), (STAGE,), to="varying")
    for pairs in _rounds(layout):
        most = max(len(moves) for moves in pairs.values())
        send, receive = np.zeros((p, most), int), np.full((p, most), v * slots)
        for (source, target), moves in pairs.items():
            for i, (unit, place) in enumerate(moves):
                send[source, i], receive[target, i] = unit, place
        part = w[jnp.asarray(send)[me]]
        if any(source != target for source, target in pairs):
            part = jax.lax.ppermute(part, STAGE, list(pairs))
        out = out.at[jnp.asarray(receive)[me]].set(part, mode="drop")
    if not layout.held.all():  # a value for slots that no unit fills: computed with, never used
        fill = np.array([_filled(row) for row in layout.held])
        out = out[jnp.asarray(fill)[me]]
    return out


_Round = dict[tuple[int, int], list[tuple[int, int]]]


def _rounds(layout: StageLayout) -> list[_Round]:
    """Who sends which units to whom, a partner each at a time.

    Counts of units by device and stage, made up to equal sums, are a sum of permutations
    (Birkhoff), so that no device sends more than the largest stage holds.

    Returns:
      rounds of (device, stage) to [(place in the device's part, place in the stage's [v * slots])].
    """
    p, slots, each = layout.stages, layout.slots, layout.n_units // layout.stages
    left: _Round = {(d, s): [] for d in range(p) for s in range(p)}
    for unit, (stage, repeat, slot) in enumerate(layout.places.tolist()):
        left[unit // each, stage].append((unit % each, repeat * slots + slot))
    count = np.array([[len(left[d, s]) for s in range(p)] for d in range(p)])
    total = max(count.sum(0).max(), count.sum(1).max())
    for d in range(p):  # units that are none, to make the sums equal
        for s in range(p):
            count[d, s] += min(total - count[d].sum(), total - count[:, s].sum())
    rounds = []
    while count.any():
        partner = _matching(count)
        size = min(count[d, s] for d, s in enumerate(partner))
        pairs: _Round = {}
        for d, s in enumerate(partner):
            count[d, s] -= size
            pairs[d, s], left[d, s] = left[d, s][:size], left[d, s][size:]
        if any(pairs.values()):
            rounds.append(pairs)
    return rounds


def _matching(count: np.ndarray) -> list[int]:
    """A column for each row, all different, where ``count`` is positive; its sums are equal."""
    p = len(count)
    owner = [-1] * p

    def place(row: int, seen: set[int]) -> bool:
        for column in sorted(range(p), key=lambda c: -count[row, c]):
            if count[row, column] and column not in seen:
                seen.add(column)
                if owner[column] < 0 or place(owner[column], seen):
                    owner[column] = row
                    return True
        return False

    for row in range(p):
        place(row, set())
    return [owner.index(row) for row in range(p)]


def _filled(held: np.ndarray) -> np.ndarray:
    """Returns for each place of a stage [v, slots] itself, or the last held place of its group."""
    repeats, slots = held.shape
    last = held.sum(axis=1, keepdims=True) - 1
    within = np.minimum(np.arange(slots), last)
    return (within + slots * np.arange(repeats)[:, None]).reshape(-1)
