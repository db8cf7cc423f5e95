"""The tokens just before each one, for short convolutions and token shifts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t5x_llm.parallel import compute_spec, current, mesh_axes

if TYPE_CHECKING:
    from jaxtyping import Array, Shaped


def earlier(
    x: Shaped[Array, "B T ..."],
    first: Shaped[Array, "B taps ..."],
    axes: Sequence[str | None] = ("batch", "length", None),
) -> list[Shaped[Array, "B T ..."]]:
    """x one token later, two tokens later, ... up to the width of ``first``.

    Where the sequence lies in pieces on several devices, each gets its first from the one before.

    Args:
      x: [B, T, ...].
      first: [B, taps, ...] what comes before the first token.
      axes: logical names of the dimensions of ``x``.

    Returns:
      ``taps`` arrays like ``x``.
    """
    count, spec, context = first.shape[1], compute_spec(axes, x.shape), current()
    if spec is None or context is None or spec[1] is None:
        return _cut(x, first)
    over = mesh_axes(spec[1])
    pieces = math.prod(context.mesh.shape[axis] for axis in over)
    if x.shape[1] // pieces < count:
        return _cut(x, first)

    def local(x: jax.Array, first: jax.Array) -> list[jax.Array]:
        passed = [(i, i + 1) for i in range(pieces - 1)]
        before = jax.lax.ppermute(x[:, -count:], over, passed)
        return _cut(x, jnp.where(jax.lax.axis_index(over) == 0, first, before))

    return jax.shard_map(
        local,
        mesh=context.mesh,
        in_specs=(spec, PartitionSpec(spec[0], None, *spec[2:])),
        out_specs=[spec] * count,
        check_vma=False,
    )(x, first)


def _cut(x: jax.Array, first: jax.Array) -> list[jax.Array]:
    count, length = first.shape[1], x.shape[1]
    padded = jnp.concatenate([first, x], axis=1)
    return [padded[:, count - back : count - back + length] for back in range(1, count + 1)]
