"""Self-attention: multi-head, grouped-query (arXiv 2305.13245) and multi-query (1911.02150)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.nn.attention_kernels import attend
from t5x_llm.nn.dense import Dense
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.positions import RotaryConfig, rotate
from t5x_llm.nn.remat import keep
from t5x_llm.parallel import constrain

KEYS = ("batch", "length", "kv_heads", "head")
QUERIES = ("batch", "length", "heads", "head")


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """A self-attention layer.

    Attributes:
      n_heads: N query heads.
      n_kv_heads: K key/value heads; N for multi-head, 1 for multi-query.
      head_dim: H.
      rotary: rotation of queries and keys, or None.
      qkv_bias: biases on the query, key and value projections.
      out_bias: bias on the output projection.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    rotary: RotaryConfig | None
    qkv_bias: bool
    out_bias: bool

    def __post_init__(self) -> None:
        for name in ("n_heads", "n_kv_heads", "head_dim"):
            check_number(f"AttentionConfig.{name}", getattr(self, name), low=1, integer=True)
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                "AttentionConfig.n_kv_heads",
                self.n_kv_heads,
                f"a divisor of n_heads = {self.n_heads}",
                "Every key/value head serves the same number of query heads.",
            )
        if self.rotary is not None and self.rotary.head_dim != self.head_dim:
            raise ConfigError(
                "RotaryConfig.head_dim", self.rotary.head_dim, f"head_dim = {self.head_dim}"
            )


@dataclasses.dataclass(frozen=True)
class Context:
    """What every layer of one forward pass shares.

    Attributes:
      positions: [B, T] int32, restarting at each segment.
      segment_ids: [B, T] int32; 0 marks padding.
      rotary: per RotaryConfig, the tables for ``positions``.
      cache_index: where this call's keys are written in the cache, or None without one.
      key_positions: [B, S] positions of the cached keys (this call's included).
      key_segment_ids: [B, S] segments of the cached keys; 0 where nothing is written.
    """

    positions: jax.Array
    segment_ids: jax.Array
    rotary: dict[RotaryConfig, tuple[jax.Array, jax.Array]]
    cache_index: jax.Array | None = None
    key_positions: jax.Array | None = None
    key_segment_ids: jax.Array | None = None


class Attention(nnx.Module):
    """[B, T, D] -> [B, T, D]; causal within a segment."""

    def __init__(self, config: AttentionConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs):
        self.config = config
        n, k, h = config.n_heads, config.n_kv_heads, config.head_dim
        kwargs: dict[str, Any] = dict(std=init.kernel(d_model), bias=config.qkv_bias, rngs=rngs)
        self.query = Dense((d_model,), (n, h), ("embed",), ("heads", "head"), **kwargs)
        self.key = Dense((d_model,), (k, h), ("embed",), ("kv_heads", "head"), **kwargs)
        self.value = Dense((d_model,), (k, h), ("embed",), ("kv_heads", "head"), **kwargs)
        self.out = Dense(
            (n, h),
            (d_model,),
            ("heads", "head"),
            ("embed",),
            std=init.kernel(n * h, residual=True),
            bias=config.out_bias,
            rngs=rngs,
        )

    def init_cache(self, batch: int, length: int, dtype: jnp.dtype) -> dict[str, jax.Array]:
        """Empty keys and values [B, S, K, H]."""
        shape = (batch, length, self.config.n_kv_heads, self.config.head_dim)
        return {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)}

    def __call__(
        self, x: jax.Array, context: Context, cache: dict[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array] | None]:
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.config.rotary is not None:
            tables = context.rotary[self.config.rotary]
            q, k = rotate(q, tables), rotate(k, tables)
        q = keep(constrain(q, QUERIES), "query")
        k = keep(constrain(k, KEYS), "key")
        v = keep(constrain(v, KEYS), "value")
        key_positions, key_segment_ids = context.positions, context.segment_ids
        if cache is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache["key"], k, context.cache_index, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(cache["value"], v, context.cache_index, axis=1)
            cache = {"key": k, "value": v}
            key_positions, key_segment_ids = context.key_positions, context.key_segment_ids
        y = attend(
            q,
            k,
            v,
            q_segment_ids=context.segment_ids,
            kv_segment_ids=key_segment_ids,
            q_positions=context.positions,
            kv_positions=key_positions,
        )
        return keep(self.out(constrain(y, QUERIES)), "attention_out"), cache
