"""Learned biases by relative position, in buckets (T5, arXiv 1910.10683, section 2.1)."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.nn.attention import Attention, AttentionConfig
from t5x_llm.nn.kernels import Bias
from t5x_llm.nn.layer import Context
from t5x_llm.nn.param import InitConfig, normal

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Int, Int32

AXES = ("positions", "heads")


@dataclasses.dataclass(frozen=True)
class RelativeBiasConfig:
    """A bias on attention logits for each bucket of distances and each head.

    The first half of a direction's buckets hold one distance each, the second half ranges that grow
    logarithmically up to ``max_distance``; everything beyond is in the last.

    Attributes:
      n_heads: N.
      n_buckets: of all directions.
      max_distance: in tokens.
      bidirectional: half of the buckets are for keys after the query; otherwise those share the
        bucket of distance 0.
    """

    n_heads: int
    n_buckets: int
    max_distance: int
    bidirectional: bool

    def __post_init__(self) -> None:
        name, low = "RelativeBiasConfig", 4 if self.bidirectional else 2
        check_number(f"{name}.n_heads", self.n_heads, low=1, integer=True)
        check_number(f"{name}.n_buckets", self.n_buckets, low=low, integer=True)
        if self.n_buckets % low:
            raise ConfigError(f"{name}.n_buckets", self.n_buckets, f"a multiple of {low}")
        exact = self.n_buckets // low
        check_number(f"{name}.max_distance", self.max_distance, low=exact + 1, integer=True)

    @property
    def one_way(self) -> int:
        """Buckets of one direction."""
        return self.n_buckets // 2 if self.bidirectional else self.n_buckets

    @functools.cached_property
    def thresholds(self) -> tuple[int, ...]:
        """The least distance of each bucket after those of one distance each.

        Found on the host in float32, as released code computes buckets, so that a distance on the
        border of two is in the same one on every platform.
        """
        exact = self.one_way // 2
        distance = np.arange(exact, self.max_distance + 1, dtype=np.float32)
        ratio = np.float32(math.log(self.max_distance / exact))
        log = np.log(distance / np.float32(exact)) / ratio * np.float32(self.one_way - exact)
        bucket = np.minimum(exact + log.astype(np.int64), self.one_way - 1)
        wanted = np.arange(exact + 1, self.one_way)
        return tuple(int(exact + i) for i in np.searchsorted(bucket, wanted))


def buckets(config: RelativeBiasConfig, offset: Int[Array, "*shape"]) -> Int32[Array, "*shape"]:
    """Bucket of each key position less query position: int32 of the same shape."""
    distance = jnp.abs(offset) if config.bidirectional else jnp.maximum(-offset, 0)
    bucket = jnp.minimum(distance, config.one_way // 2)
    for least in config.thresholds:
        bucket += distance >= least
    return bucket + (offset > 0) * config.one_way if config.bidirectional else bucket


def relative_bias(
    q_positions: Int[Array, "B T"],
    kv_positions: Int[Array, "B S"],
    config: RelativeBiasConfig,
    table: Float[Array, "buckets N"],
) -> Float32[Array, "B N T S"]:
    """Biases of queries at [B, T] towards keys at [B, S]: [B, N, T, S] float32.

    The rows of ``table`` [buckets, N] are taken by a product, whose gradient is one too.
    """
    offset = kv_positions[:, None, :] - q_positions[:, :, None]
    rows = jax.nn.one_hot(buckets(config, offset), config.n_buckets, dtype=jnp.float32)
    return jnp.einsum(
        "btsk,kn->bnts", rows, table.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )


class RelativeBias(nnx.Module):
    """Holds the biases [buckets, N] of a stack."""

    def __init__(self, config: RelativeBiasConfig, std: float, rngs: nnx.Rngs):
        self.bias = normal(rngs, (config.n_buckets, config.n_heads), std, AXES)


@dataclasses.dataclass(frozen=True)
class RelativeAttentionConfig(AttentionConfig):
    """Self-attention with biases by relative position.

    Attributes:
      relative: the biases; layers of a stack with equal ones share a table, which the stack holds.
    """

    relative: RelativeBiasConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relative.n_heads != self.n_heads:
            raise ConfigError(
                "RelativeBiasConfig.n_heads", self.relative.n_heads, f"{self.n_heads}"
            )
        if self.alibi is not None:
            raise ConfigError("AttentionConfig.alibi", self.alibi, "None beside relative biases")

    def make(self, d_model: int, init: InitConfig, rngs: nnx.Rngs) -> RelativeAttention:
        """The layer."""
        return RelativeAttention(self, d_model, init, rngs)


class RelativeAttention(Attention):
    """[B, T, D] -> [B, T, D] within a segment."""

    config: RelativeAttentionConfig

    def bias(self, context: Context) -> Bias:
        """Returns the biases of the stack's table."""
        config = self.config.relative
        return functools.partial(relative_bias, config=config, table=context.relative[config])
