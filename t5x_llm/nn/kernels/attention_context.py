"""Self-attention over a sequence that lies in pieces on the ``context`` axis of the mesh.

Ulysses (arXiv 2309.14509) exchanges heads for the sequence, so that a device attends over all of
it for its share of the heads. In a ring (arXiv 2310.01889) queries stay and keys and values go
round; what a device has seen so far is a softmax that it corrects (online softmax). Under
``causal`` a device holds a piece from the front and one from the back (as in arXiv 2311.09431,
2407.21783), so that all have the same work in every round. The backward pass goes round once more,
with weights from the saved log-sum-exp, and the gradients of keys travel with them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t5x_llm.core.errors import ConfigError
from t5x_llm.nn.kernels.attention_mask import Bias
from t5x_llm.nn.kernels.attention_ring import Keys, Ring, Rows, ring
from t5x_llm.parallel import compute_spec, current, mesh_axes, per_device

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

    Attend = Callable[..., Float[Array, "B T N values"]]


class Layout(NamedTuple):
    """Layout of queries [B, T, N, H]: the entries of their PartitionSpec."""

    batch: Any
    length: Any
    heads: Any


def context_layout(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    bias: Bias | None,
    places: tuple[Int[Array, "B T"], Int[Array, "B S"]],
) -> Layout | None:
    """The layout, where the sequence is in pieces; None where it is not, or must be gathered.

    That is so where a bias is learned: its gradient would have to be made in the ring.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H].
      bias: see ``attend``.
      places: (positions of queries, of keys).
    """
    spec = compute_spec(("batch", "length", "heads", None), q.shape)
    if spec is None or spec[1] is None or q.shape[1] != k.shape[1]:
        return None
    if bias is not None and jax.closure_convert(bias, *places)[1]:
        return None
    return Layout(spec[0], spec[1], spec[2])


def repeat_heads(
    x: Float[Array, "B S K H"], n_heads: int, pieces: int
) -> Float[Array, "B S heads H"]:
    """Keys or values [B, S, K, H] with each head repeated until ``pieces`` divides their number.

    Every piece of the query heads then finds its own among them. ``pieces`` divides ``n_heads``.
    """
    times = math.lcm(x.shape[2], pieces) // x.shape[2]
    return x if times == 1 else jnp.repeat(x, times, axis=2)


def context_attend(
    attend: Attend,
    layout: Layout,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K values"],
    *,
    q_segment_ids: Int[Array, "B T"],
    kv_segment_ids: Int[Array, "B S"],
    q_positions: Int[Array, "B T"],
    kv_positions: Int[Array, "B S"],
    sinks: Float[Array, " N"] | None,
    bias: Bias | None,
    kv_prefix: Bool[Array, "B S"] | None,
    **static: Any,
) -> Float[Array, "B T N values"]:
    """``attend`` as the mesh's rules say; see there. ``attend`` itself works on one device."""
    context = current()
    assert context is not None
    mesh, n = context.mesh, q.shape[2]
    ways = math.prod(mesh.shape[axis] for axis in mesh_axes(layout.heads))
    pieces = math.prod(mesh.shape[axis] for axis in mesh_axes(layout.length))
    by_heads = context.rules.context_attention == "ulysses"
    if by_heads and n % (ways * pieces):
        raise ConfigError(
            "MeshConfig.context_attention",
            "ulysses",
            f"'ring' where tensor x context = {ways * pieces} does not divide the {n} heads",
            "Ulysses gives every device whole heads.",
        )
    k, v = (repeat_heads(a, n, ways * (pieces if by_heads else 1)) for a in (k, v))
    axes = mesh_axes(layout.length)
    heads = PartitionSpec(layout.batch, layout.length, layout.heads, None)
    tokens = PartitionSpec(layout.batch, None if by_heads else layout.length)

    def of_heads(count: int, sinks: jax.Array | None) -> dict[str, Any]:
        """Sinks and bias of the ``count`` heads that this device attends for."""
        over = mesh_axes(layout.heads) + (axes if by_heads else ())

        def cut(x: jax.Array, axis: int) -> jax.Array:
            first = jax.lax.axis_index(over) * count
            return jax.lax.dynamic_slice_in_dim(x, first, count, axis)

        def own(q_positions: jax.Array, kv_positions: jax.Array) -> jax.Array:
            assert bias is not None
            return cut(bias(q_positions, kv_positions), 1)

        return {
            "sinks": None if sinks is None else cut(sinks, 0),
            "bias": None if bias is None else own,
        }

    def exchanged(
        q: jax.Array, k: jax.Array, v: jax.Array, rows: Rows, keys: Keys, sinks: Any
    ) -> jax.Array:
        swap = functools.partial(jax.lax.all_to_all, axis_name=axes, tiled=True)
        q, k, v = (swap(a, split_axis=2, concat_axis=1) for a in (q, k, v))
        with per_device():
            y = attend(
                *(q, k, v),
                q_segment_ids=rows.segments,
                kv_segment_ids=keys.segments,
                q_positions=rows.positions,
                kv_positions=keys.positions,
                kv_prefix=keys.prefix,
                **of_heads(q.shape[2], sinks),
                **static,
            )
        return swap(y, split_axis=1, concat_axis=2)

    def round_(
        q: jax.Array, k: jax.Array, v: jax.Array, rows: Rows, keys: Keys, sinks: Any
    ) -> jax.Array:
        mine = of_heads(q.shape[2], sinks)
        whole = Ring(axes, pieces, bias=mine["bias"], **static)
        return ring(whole, q, k, v, rows, keys, mine["sinks"])

    rows = Rows(q_segment_ids, q_positions)
    keys = Keys(kv_segment_ids, kv_positions, kv_prefix)
    return jax.shard_map(
        exchanged if by_heads else round_,
        mesh=mesh,
        in_specs=(heads, heads, heads, tokens, tokens, PartitionSpec()),
        out_specs=heads,
        check_vma=False,
    )(q, k, v, rows, keys, sinks)
