"""Kinds of decoding caches: how one array of a layer's past is shaped, written and read.

Every row of a batch has a place of its own: what a call adds to row b follows the ``index[b]``
tokens that the row already holds. Only the first ``lengths[b]`` tokens of the call are added; the
others, at the end of the row, are padding, and no kind keeps anything of them. So rows of different
lengths are padded at their ends, and a row that has finished takes part with no token at all.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.nn.kernels import keeps_bits
from t5x_llm.parallel import constrain

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int, Int32, Shaped

Cache = dict[str, Any]


class CacheRows(NamedTuple):
    """Places of one call's tokens in the caches of their rows, and what the rows then hold.

    Attributes:
      index: [B] int32, tokens that a row holds before the call.
      lengths: [B] int32, tokens of the call that a row adds; those after them are padding.
      positions: [B, S] int32, positions of the tokens held, this call's included.
      segment_ids: [B, S] int32, their segments; 0 where nothing is written.
      prefix: [B, S] bool, which of them ``causal`` does not hide, or None.
    """

    index: Int[Array, " B"]
    lengths: Int[Array, " B"]
    positions: Int[Array, "B S"] | None = None
    segment_ids: Int[Array, "B S"] | None = None
    prefix: Bool[Array, "B S"] | None = None

    def valid(self, count: int) -> Bool[Array, "B T"]:
        """Tokens of a call of ``count`` that are added: bool [B, count]."""
        return jnp.arange(count) < self.lengths[:, None]


class CacheKind(Protocol):
    """A way to keep something of the past: one array with a leading axis B a layer."""

    def shape(self, batch: int, length: int) -> tuple[int, ...]:
        """Returns the array's shape for ``batch`` rows of up to ``length`` tokens."""
        ...

    def empty(self, batch: int, length: int, dtype: Any) -> Shaped[Array, "B ..."]:
        """Returns the array of rows that hold nothing; ``dtype`` unless the kind has its own."""
        ...

    def write(
        self, held: Shaped[Array, "B ..."], new: Shaped[Array, "B ..."], rows: CacheRows | None
    ) -> Shaped[Array, "B ..."]:
        """Adds a call's tokens; rows None says that all of them are valid.

        Args:
          held: of ``shape``, before the call.
          new: [B, T, ...] a token's entries, or the state after the call.
          rows: places of the tokens.
        """
        ...

    def read(self, held: Shaped[Array, "B ..."], rows: CacheRows | None) -> Shaped[Array, "B ..."]:
        """Returns what the layer computes with: entries by place [B, S, ...], or the state."""
        ...


@dataclasses.dataclass(frozen=True)
class TokenCache:
    """An entry for every token: keys, values, compressed vectors, positions, segments.

    Attributes:
      features: shape of an entry.
      axes: logical names of its dimensions.
      dtype: of the entries; None for the compute dtype.
    """

    features: tuple[int, ...] = ()
    axes: tuple[str | None, ...] = ()
    dtype: Any = None

    def shape(self, batch: int, length: int) -> tuple[int, ...]:
        """Returns [batch, length, *features]."""
        return (batch, length, *self.features)

    def empty(self, batch: int, length: int, dtype: Any) -> Shaped[Array, "B S *features"]:
        """Returns zeros."""
        return jnp.zeros(self.shape(batch, length), self.dtype or dtype)

    def write(
        self,
        held: Shaped[Array, "B S *features"],
        new: Shaped[Array, "B T *features"],
        rows: CacheRows | None,
    ) -> Shaped[Array, "B S *features"]:
        """Puts the valid tokens of ``new`` [B, T, *features] at each row's own place.

        Places beyond the end of ``held`` [B, S, *features] are dropped.
        """
        assert rows is not None
        held = write_rows(held, new, rows.index, rows.lengths)
        return constrain(held, ("batch", None, *self.axes))

    def read(
        self, held: Shaped[Array, "B S *features"], rows: CacheRows | None
    ) -> Shaped[Array, "B S *features"]:
        """Returns all entries; those not written have segment 0 in ``rows``."""
        return held


@dataclasses.dataclass(frozen=True)
class RecentCache:
    """The entries of the last ``count`` tokens, oldest first: what short convolutions reach.

    Attributes:
      count: tokens kept.
      features: shape of an entry.
      dtype: of the entries; None for the compute dtype.
    """

    count: int
    features: tuple[int, ...] = ()
    dtype: Any = None

    def shape(self, batch: int, length: int) -> tuple[int, ...]:
        """Returns [batch, count, *features], whatever the length."""
        return (batch, self.count, *self.features)

    def empty(self, batch: int, length: int, dtype: Any) -> Shaped[Array, "B S *features"]:
        """Returns zeros."""
        return jnp.zeros(self.shape(batch, length), self.dtype or dtype)

    def write(
        self,
        held: Shaped[Array, "B S *features"],
        new: Shaped[Array, "B T *features"],
        rows: CacheRows | None,
    ) -> Shaped[Array, "B S *features"]:
        """Returns the last entries of ``held`` and the valid ones of ``new`` [B, T, *features]."""
        joined = jnp.concatenate([held, new.astype(held.dtype)], axis=1)
        if rows is None:
            return joined[:, joined.shape[1] - self.count :]

        def last(joined: jax.Array, length: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(joined, length, self.count)

        return jax.vmap(last)(joined, rows.lengths)

    def read(
        self, held: Shaped[Array, "B S *features"], rows: CacheRows | None
    ) -> Shaped[Array, "B S *features"]:
        """Returns all entries."""
        return held


@dataclasses.dataclass(frozen=True)
class StateCache:
    """A state of constant size: what a recurrence keeps of all tokens together.

    Attributes:
      features: shape of a row's state.
      dtype: of the state.
      fill: value of an empty one.
    """

    features: tuple[int, ...] = ()
    dtype: Any = jnp.float32
    fill: float = 0.0

    def shape(self, batch: int, length: int) -> tuple[int, ...]:
        """Returns [batch, *features], whatever the length."""
        return (batch, *self.features)

    def empty(self, batch: int, length: int, dtype: Any) -> Shaped[Array, " B *features"]:
        """Returns ``fill`` everywhere."""
        return jnp.full(self.shape(batch, length), self.fill, self.dtype)

    def write(
        self,
        held: Shaped[Array, " B *features"],
        new: Shaped[Array, " B *features"],
        rows: CacheRows | None,
    ) -> Shaped[Array, " B *features"]:
        """Returns the new state [B, *features], and the old one of rows without a valid token."""
        if rows is None:
            return new
        moved = rows.lengths.reshape(-1, *(1,) * len(self.features)) > 0
        return jnp.where(moved, new, held)

    def read(
        self, held: Shaped[Array, " B *features"], rows: CacheRows | None
    ) -> Shaped[Array, " B *features"]:
        """Returns the state."""
        return held


class CachedLayer(nnx.Module):
    """A layer whose cache is what ``cache_kinds`` lists; by default nothing, a token is enough."""

    def cache_kinds(self) -> dict[str, Any]:
        """Returns a tree (nested dicts) of ``CacheKind``, by the names of the cache's arrays."""
        return {}

    def init_cache(self, batch: int, length: int, dtype: Any) -> Cache:
        """Returns the cache of ``batch`` rows that hold nothing, for up to ``length`` tokens."""
        return empty_cache(self.cache_kinds(), batch, length, dtype)

    def write_cache(self, cache: Cache | None, new: Cache, rows: CacheRows | None) -> Cache | None:
        """Returns the cache after a call, given by name what it adds; None if there was none."""
        if cache is None:
            return None
        kinds = self.cache_kinds()
        return {name: kinds[name].write(cache[name], new[name], rows) for name in cache}


def empty_cache(kinds: dict[str, Any], batch: int, length: int, dtype: Any) -> Cache:
    """Returns the arrays of a tree of kinds, holding nothing."""
    return {
        name: empty_cache(kind, batch, length, dtype)
        if isinstance(kind, dict)
        else kind.empty(batch, length, dtype)
        for name, kind in kinds.items()
    }


def write_rows(
    held: Shaped[Array, "B S *features"],
    new: Shaped[Array, "B T *features"],
    index: Int[Array, " B"],
    lengths: Int[Array, " B"],
) -> Shaped[Array, "B S *features"]:
    """Writes the first ``lengths`` entries of each row of ``new`` at ``index`` of that row.

    One window of T places is read, changed and written back in each row, so that nothing outside
    ``index`` to ``index + lengths`` changes, and nothing is moved where the end of the cache comes
    before the end of the call.

    Args:
      held: [B, S, ...].
      new: [B, T, ...], T at most S.
      index: [B] int32.
      lengths: [B] int32.
    """
    size, count = held.shape[1], new.shape[1]
    if count > size:
        raise ValueError(f"a call of {count} tokens is longer than its cache of {size}")
    new = new.astype(held.dtype)
    if keeps_bits(held):
        # XLA's CPU backend in jax 0.10 widens a whole bfloat16 cache to write a part; not bits.
        old, added = (jax.lax.bitcast_convert_type(x, jnp.uint16) for x in (held, new))
        bits = write_rows(old, added, index, lengths)
        return jax.lax.bitcast_convert_type(bits, held.dtype)
    start = jnp.clip(index, 0, size - count)  # the window ends where the cache does at the latest
    shift = index - start

    def one(held: jax.Array, new: jax.Array, *place: jax.Array) -> jax.Array:
        start, shift, length = place
        old = jax.lax.dynamic_slice_in_dim(held, start, count)
        token = jnp.arange(count) - shift
        if count > 1:
            twice = jnp.concatenate([new, new])
            new = jax.lax.dynamic_slice_in_dim(twice, count - shift, count)
        mine = (token >= 0) & (token < length)
        window = jnp.where(mine.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
        return jax.lax.dynamic_update_slice_in_dim(held, window, start, axis=0)

    return jax.vmap(one)(held, new, start, shift, lengths)


def valid_lengths(segment_ids: Int[Array, "B T"]) -> Int32[Array, " B"]:
    """Tokens of each row up to the last that is no padding: [B] int32.

    Args:
      segment_ids: [B, T] int32; 0 is padding.
    """
    count = jnp.arange(1, segment_ids.shape[1] + 1, dtype=jnp.int32)
    return jnp.max(jnp.where(segment_ids != 0, count, 0), axis=1)


def at_end(values: Shaped[Array, "B T"], rows: CacheRows, before: Any) -> Shaped[Array, " B"]:
    """Values [B, T] of each row's last valid token; ``before`` for rows that have none."""
    last = jnp.maximum(rows.lengths - 1, 0)[:, None]
    return jnp.where(rows.lengths > 0, jnp.take_along_axis(values, last, axis=1)[:, 0], before)
