"""Moving tokens to experts and back.

Each token's choices get rows of a buffer in which the rows of an expert lie together. Both ways
are gathers, in the backward pass too: a scatter of rows is slow and adds in no fixed order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Int32


class Places(NamedTuple):
    """Places of choices in the buffer.

    Attributes:
      slot: [M, k] int32, the row of a token's choice; the number of rows where it has none.
      source: [rows] int32, token * k + choice of a row; M * k where it is empty.
      counts: [E] int32, choices of each expert, those that got no row included.
    """

    slot: Int32[Array, "M k"]
    source: Int32[Array, " rows"]
    counts: Int32[Array, " E"]


def place(experts: Int[Array, "M k"], n_experts: int, block: int, capacity: int | None) -> Places:
    """Gives choices their rows, for each expert in the order of tokens.

    Args:
      experts: [M, k] int32; ``n_experts`` for a choice that goes nowhere.
      n_experts: E.
      block: without ``capacity``, an expert's rows begin at a multiple of this.
      capacity: rows of each expert, those beyond which are dropped; None for as many as needed.
    """
    flat = experts.reshape(-1)
    n = flat.shape[0]
    counts = jnp.zeros(n_experts + 1, jnp.int32).at[flat].add(1)
    order = jnp.argsort(flat, stable=True)
    owner = flat[order]
    rank = jnp.arange(n) - (jnp.cumsum(counts) - counts)[owner]
    if capacity is None:
        rows = -(-(n + n_experts * (block - 1)) // block) * block
        room = -(-counts // block) * block
        begin = jnp.cumsum(room) - room
        fits = owner < n_experts
    else:
        rows = n_experts * capacity
        begin = jnp.arange(n_experts + 1) * capacity
        fits = (owner < n_experts) & (rank < capacity)
    slots = jnp.where(fits, begin[owner] + rank, rows).astype(jnp.int32)
    source = jnp.full(rows, n, jnp.int32).at[slots].set(order.astype(jnp.int32), mode="drop")
    slot = jnp.zeros(n, jnp.int32).at[order].set(slots, unique_indices=True)
    return Places(slot.reshape(experts.shape), source, counts[:n_experts])


def _rows(x: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of x at ``index``, zeros beyond its end."""
    return x.at[index].get(mode="fill", fill_value=0)


@jax.custom_vjp
def spread(x: Float[Array, "M D"], places: Places) -> Float[Array, "rows D"]:
    """x [M, D] to the buffer [rows, D]; empty rows are zero."""
    return _rows(x, places.source // places.slot.shape[1])


def _spread_bwd(places: Places, dy: jax.Array) -> tuple[jax.Array, None]:
    return jnp.sum(_rows(dy, places.slot), axis=1, dtype=jnp.float32).astype(dy.dtype), None


spread.defvjp(lambda x, places: (spread(x, places), places), _spread_bwd)


@jax.custom_vjp
def collect(y: Float[Array, "rows D"], places: Places) -> Float[Array, "M k D"]:
    """The buffer [rows, D] to each token's choices [M, k, D]; zeros for those without a row."""
    return _rows(y, places.slot)


def _collect_bwd(places: Places, dz: jax.Array) -> tuple[jax.Array, None]:
    return _rows(dz.reshape(-1, dz.shape[-1]), places.source), None


collect.defvjp(lambda y, places: (collect(y, places), places), _collect_bwd)
