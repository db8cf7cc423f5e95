"""Products with a kernel of each expert, and the exchange of their rows, by platform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from t5x_llm.nn.kernels.products import row_major
from t5x_llm.parallel import platform

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Shaped

_LARGEST_BLOCK = 128
_TILE = 128


def exchange(
    x: Shaped[Array, "rows D"],
    axes: tuple[str, ...],
    counts: Int[Array, " devices"],
    back: bool = False,
) -> Shaped[Array, "rows D"]:
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
    """The ``block`` that ``grouped_product`` wants of ``dispatch.place``.

    One on TPU and GPU. XLA's CPU backend (jax 0.10, 0.12) multiplies every row with every
    expert's kernel for a ``ragged_dot``, so there the rows of an expert come in whole blocks.
    """
    if platform() != "cpu":
        return 1
    block = _LARGEST_BLOCK
    while block > 1 and block * n_experts > choices:
        block //= 2
    return block


def grouped_product(
    x: Float[Array, "rows D"], kernels: Float[Array, "E D F"], counts: Int[Array, " E"], block: int
) -> Float[Array, "rows F"]:
    """Each expert's rows times its kernel.

    Args:
      x: [rows, D], placed by ``dispatch.place`` with ``block``.
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


def gmm(*arguments: Any, interpret: bool = False) -> Float[Array, "rows F"]:
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
