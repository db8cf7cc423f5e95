"""Protocol of the parts of a block, and the context that all layers of a pass share.

A block is made of sequence mixers (attention, a recurrence) and feed-forward layers. Each is built
by its frozen config, so a block needs no list of kinds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int

from t5x_llm.nn.cache import Cache, CacheRows
from t5x_llm.nn.param import InitConfig

# Segment of virtual tokens, which tokens of every segment continue.
VIRTUAL = -2

Aux = dict[str, Float32[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class Context:
    """Facts that every layer of one forward pass shares.

    Attributes:
      positions: [B, T] int32, restarting at each segment.
      segment_ids: [B, T] int32; 0 marks padding.
      starts: [B, T] bool, True where a token does not continue the one before it, be it in this
        call or in the cache. Recurrences and convolutions cut their state and taps there.
      rotary: by rotary config, the tables for ``positions``.
      prefix: [B, T] bool, tokens that all of their segment may see (prefix LM), or None.
      rows: with a cache, where each row's tokens go in it and what it then holds; else None.
      relative: by relative bias config, the stack's table [buckets, N].
      encoded: [B, S, D] what an encoder made, or None: there is none, or its keys are cached.
      encoder_segment_ids: [B, S] its segments; 0 marks padding.
      common: the first tokens of every row, this many, that all segments see: virtual ones.
      trunk: [n, hidden] what layers make the keys and values of their prefix of, or None.
    """

    positions: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    starts: Bool[Array, "B T"]
    rotary: dict[Any, tuple[Float32[Array, "B T pairs"], Float32[Array, "B T pairs"]]]
    prefix: Bool[Array, "B T"] | None = None
    rows: CacheRows | None = None
    relative: dict[Any, Float[Array, "buckets N"]] = dataclasses.field(default_factory=dict)
    encoded: Float[Array, "B S D"] | None = None
    encoder_segment_ids: Int[Array, "B S"] | None = None
    common: int = 0
    trunk: Float[Array, "virtual hidden"] | None = None

    def seen(self) -> dict[str, Any]:
        """Returns what ``attend`` is told of queries and keys: of this call, or of the cache."""
        places: dict[str, Any] = dict(q_segment_ids=self.segment_ids, q_positions=self.positions)
        if self.common:
            places["common"] = self.common
        if self.rows is None:
            own = dict(kv_segment_ids=self.segment_ids, kv_positions=self.positions)
            return places | own | {"kv_prefix": self.prefix}
        held = dict(kv_segment_ids=self.rows.segment_ids, kv_positions=self.rows.positions)
        return places | held | {"kv_prefix": self.rows.prefix, "cached": True}

    def valid(self) -> Bool[Array, "B T"] | None:
        """Returns the tokens [B, T] bool that a cache keeps; None without one: all of them."""
        return None if self.rows is None else self.rows.valid(self.segment_ids.shape[1])


def starts_of(
    segment_ids: Int[Array, "B T"], before: Int[Array, " B"] | None = None
) -> Bool[Array, "B T"]:
    """Returns where tokens do not continue the token before them: bool [B, T].

    Args:
      segment_ids: [B, T] int32.
      before: [B] int32 segment of the token before the first, or None if there is none.
    """
    if before is None:
        before = jnp.full_like(segment_ids[:, 0], -1)
    before = jnp.concatenate([before[:, None], segment_ids[:, :-1]], axis=1)
    return (segment_ids != before) & (before != VIRTUAL)


class Layer(Protocol):
    """A sequence mixer or a feed-forward layer; ``nn.cache.CachedLayer`` has what caches need."""

    def cache_kinds(self) -> dict[str, Any]:
        """Returns by name the ``nn.cache.CacheKind`` of what decoding keeps; {} for nothing."""
        ...

    def init_cache(self, batch: int, length: int, dtype: jnp.dtype) -> Cache:
        """Returns the arrays of ``cache_kinds``, with a leading axis B, holding nothing."""
        ...

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Cache | None, Aux]:
        """x [B, T, D] to [B, T, D], the cache after it, and scalars.

        Of the scalars (float32), ``loss`` is an auxiliary loss per token, weighted, that is added
        to what is trained; others are metrics, averaged over layers.
        """
        ...


class LayerConfig(Protocol):
    """A layer's config. ``part`` is its name in a block and in the paths of its parameters."""

    part: ClassVar[str]

    @property
    def make(self) -> Callable[[int, InitConfig, nnx.Rngs], Any]:
        """(d_model, init, rngs) -> Layer."""
        ...
