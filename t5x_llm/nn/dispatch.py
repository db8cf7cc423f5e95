"""Moving tokens to experts and back, and products with a kernel of each expert.

Each token's choices get rows of a buffer in which the rows of an expert lie together. Both ways
are gathers, in the backward pass too: a scatter of rows is slow and adds in no fixed order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_llm.nn.linear import row_major
from t5x_llm.parallel import platform

_LARGEST_BLOCK = 128
_TILE = 128


class Places(NamedTuple):
    """Where choices lie in the buffer.

    Attributes:
      slot: [M, k] int32, the row of a token's choice; the number of rows where it has none.
      source: [rows] int32, token * k + choice of a row; M * k where it is empty.
      counts: [E] int32, choices of each expert, those that got no row included.
    """

    slot: jax.Array
    source: jax.Array
    counts: jax.Array


def place(experts: jax.Array, n_experts: int, block: int, capacity: int | None) -> Places:
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
def spread(x: jax.Array, places: Places) -> jax.Array:
    """x [M, D] to the buffer [rows, D]; empty rows are zero."""
    return _rows(x, places.source // places.slot.shape[1])


def _spread_bwd(places: Places, dy: jax.Array) -> tuple[jax.Array, None]:
    return jnp.sum(_rows(dy, places.slot), axis=1, dtype=jnp.float32).astype(dy.dtype), None


spread.defvjp(lambda x, places: (spread(x, places), places), _spread_bwd)


@jax.custom_vjp
def collect(y: jax.Array, places: Places) -> jax.Array:
    """The buffer [rows, D] to each token's choices [M, k, D]; zeros for those without a row."""
    return _rows(y, places.slot)


def _collect_bwd(places: Places, dz: jax.Array) -> tuple[jax.Array, None]:
    return _rows(dz.reshape(-1, dz.shape[-1]), places.source), None


collect.defvjp(lambda y, places: (collect(y, places), places), _collect_bwd)


def exchange(
    x: jax.Array, axes: tuple[str, ...], counts: jax.Array, back: bool = False
) -> jax.Array:
    """Rows for each device of a mesh's axes, from each; within ``jax.shard_map``.

    Only the rows in use travel on TPU (libtpu has a ragged exchange; XLA's CPU backend has not).

    Args:
      x: [devices * room, D]: ``room`` rows for each, those in use first.
      axes: of the mesh.
      counts: [devices] int32, rows in use of what this device sends out.
      back: ``x`` are the answers to what came in; ``counts`` are those of the way out.

    Returns:
      [devices * room, D]: the rows from each device; zeros after those in use.
    """
    if platform() != "tpu":
        return jax.lax.all_to_all(x, axes, 0, 0, tiled=True)
    devices = counts.shape[0]
    room = x.shape[0] // devices
    theirs = jax.lax.all_to_all(counts, axes, 0, 0, tiled=True)
    sent, received = (theirs, counts) if back else (counts, theirs)
    begin = jnp.arange(devices, dtype=jnp.int32) * room
    there = jnp.full(devices, room, jnp.int32) * jax.lax.axis_index(axes)
    return jax.lax.ragged_all_to_all(
        x, jnp.zeros_like(x), begin, sent, there, received, axis_name=axes
    )


def block_size(choices: int, n_experts: int) -> int:
    """The ``block`` that ``grouped_product`` wants of ``place``.

    One on TPU and GPU. XLA's CPU backend (jax 0.10, 0.12) multiplies every row with every
    expert's kernel for a ``ragged_dot``, so there the rows of an expert come in whole blocks.
    """
    if platform() != "cpu":
        return 1
    block = _LARGEST_BLOCK
    while block > 1 and block * n_experts > choices:
        block //= 2
    return block


def grouped_product(x: jax.Array, kernels: jax.Array, counts: jax.Array, block: int) -> jax.Array:
    """Each expert's rows times its kernel.

    Args:
      x: [rows, D], placed with ``block``.
      kernels: [E, D, F], of the dtype of ``x``.
      counts: [E] int32.
      block: as given to ``place``.

    Returns:
      [rows, F]; rows of no expert may hold anything, NaN too, in y and in the gradient of x.
      ``spread`` and ``collect`` do not read them, and no kernel's gradient does.
    """
    if platform() == "cpu":
        ends = jnp.cumsum(-(-counts // block))
        owners = jnp.searchsorted(ends, jnp.arange(x.shape[0] // block), side="right")
        return _blocked(x, kernels, owners, ends[-1])
    if platform() == "tpu":
        return _megablox(x, kernels, counts)
    # XLA's own product promises nothing of such rows in the gradient of the kernels.
    used = (jnp.arange(x.shape[0]) < jnp.sum(counts))[:, None]
    return jnp.where(used, jax.lax.ragged_dot(jnp.where(used, x, 0), kernels, counts), 0)


def _megablox(x: jax.Array, kernels: jax.Array, counts: jax.Array) -> jax.Array:
    """``ragged_dot`` by the Pallas kernel of arXiv 2211.15841 that ships with JAX.

    It writes no row of no group, and leaves them out of the kernels' gradient by a select. To mask
    [rows, F] before and after each product would cost Mixtral as much memory as three of them.

    The TPU compiler (libtpu 0.0.52) lowers ``ragged_dot`` itself to E whole products.
    """
    n = x.shape[0]
    x = jnp.pad(x, ((0, -n % _TILE), (0, 0)))
    rows = next(size for size in (4 * _TILE, 2 * _TILE, _TILE) if x.shape[0] % size == 0)
    tiling = (rows, *(min(4 * _TILE, -(-size // _TILE) * _TILE) for size in kernels.shape[1:]))
    return gmm(x, kernels, counts, x.dtype, tiling)[:n]


def gmm(*arguments: Any, interpret: bool = False) -> jax.Array:
    """The kernel, imported where it is needed."""
    from jax.experimental.pallas.ops.tpu.megablox import ops

    return ops.gmm(*arguments, None, None, False, interpret)


def _dot(a: jax.Array, b: jax.Array, b_axis: int) -> jax.Array:
    dims = (((1,), (b_axis,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _by_blocks(
    x: jax.Array, kernels: jax.Array, owners: jax.Array, used: jax.Array, axis: int
) -> jax.Array:
    """The blocks of x, each contracted with ``axis`` of its expert's [D, F]."""
    block = x.shape[0] // owners.shape[0]

    def body(i: jax.Array, y: jax.Array) -> jax.Array:
        rows = jax.lax.dynamic_slice_in_dim(x, i * block, block)
        part = _dot(rows, kernels[owners[i]], axis).astype(y.dtype)
        return jax.lax.dynamic_update_slice_in_dim(y, part, i * block, axis=0)

    empty = jnp.zeros((x.shape[0], kernels.shape[2 - axis]), x.dtype)
    return jax.lax.fori_loop(0, used, body, empty)


@jax.custom_vjp
def _blocked(x: jax.Array, kernels: jax.Array, owners: jax.Array, used: jax.Array) -> jax.Array:
    return _by_blocks(x, kernels, owners, used, 0)


def _blocked_fwd(*arguments: jax.Array) -> tuple[jax.Array, Any]:
    return _blocked(*arguments), arguments


def _blocked_bwd(saved: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array, None, None]:
    x, kernels, owners, used = saved
    block = x.shape[0] // owners.shape[0]

    def body(i: jax.Array, total: jax.Array) -> jax.Array:
        a, b = (jax.lax.dynamic_slice_in_dim(y, i * block, block) for y in (x, dy))
        return total.at[owners[i]].add(_dot(row_major(a.T), b, 0))

    d_kernels = jax.lax.fori_loop(0, used, body, jnp.zeros(kernels.shape, jnp.float32))
    return _by_blocks(dy, kernels, owners, used, 1), d_kernels.astype(kernels.dtype), None, None


_blocked.defvjp(_blocked_fwd, _blocked_bwd)
