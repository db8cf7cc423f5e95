"""Positions inside attention: rotary embedding (RoPE, arXiv 2104.09864) and ALiBi (2108.12409)."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.nn.kernels import turn_whole, turns_whole
from t5x_llm.nn.rotary_scaling import AnyRotaryScaling, LongRotaryScaling, RotaryScaling

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Int, Int32

    Tables = tuple[Float32[Array, "B T pairs"], Float32[Array, "B T pairs"]]


@dataclasses.dataclass(frozen=True)
class RotaryConfig:
    """Rotation of query and key heads by position.

    Attributes:
      theta: base of the geometric series of wavelengths.
      dim: channels that are rotated, the first of each head; even.
      interleaved: pairs are neighbours (0, 1), (2, 3), ... (GPT-J, GLM) instead of (i, i + dim/2)
        (LLaMA, NeoX).
      scaling: stretch of the frequencies, or None.
      two_d: the first half of ``dim`` turns with ``positions``, the second with
        ``block_positions`` (GLM, arXiv 2103.10360, section 2.2.3), both with ``dim / 2`` channels'
        frequencies.
    """

    theta: float
    dim: int
    interleaved: bool
    scaling: AnyRotaryScaling | None
    two_d: bool

    def __post_init__(self) -> None:
        check_number("RotaryConfig.theta", self.theta, above=0)
        check_number("RotaryConfig.dim", self.dim, low=2, integer=True)
        multiple = 4 if self.two_d else 2
        if self.dim % multiple:
            raise ConfigError(
                "RotaryConfig.dim",
                self.dim,
                "a multiple of 4" if self.two_d else "an even number",
                "RoPE rotates pairs of channels.",
            )
        if isinstance(self.scaling, LongRotaryScaling) and 2 * len(self.scaling.short) != self.dim:
            raise ConfigError(
                "LongRotaryScaling.short",
                f"{len(self.scaling.short)} numbers",
                f"{self.dim // 2}, one for each rotated pair of channels",
            )
        if self.two_d and self.by_length:
            scaling = type(self.scaling).__name__
            raise ConfigError("RotaryConfig.scaling", scaling, "one for every length, where two_d")

    @property
    def by_length(self) -> bool:
        """True if the frequencies depend on how long the sequence is."""
        return not isinstance(self.scaling, RotaryScaling | None)


def frequencies(config: RotaryConfig) -> Float32[np.ndarray, " pairs"]:
    """Radians a position for each pair: [dim/2] float32 (of each half where ``two_d``: [dim/4]).

    Where they depend on the length of the sequence, these are those before any stretch. Rounded
    once: a power in float32 is a few units off, which 512 positions make 1e-4 of a logit.
    """
    plain = _plain(config)
    if isinstance(config.scaling, RotaryScaling):
        plain = config.scaling.frequencies(plain, config.theta)
    return plain.astype(np.float32)


def _plain(config: RotaryConfig) -> np.ndarray:
    dim = config.dim // 2 if config.two_d else config.dim
    return np.asarray(config.theta ** -(np.arange(0, dim, 2) / dim))


def sequence_lengths(
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    held_positions: Int[Array, "B S"] | None = None,
    held_segments: Int[Array, "B S"] | None = None,
) -> Int32[Array, "B T"]:
    """Tokens of the sequence that each token belongs to, so far: [B, T] int32.

    Segments of a row count by themselves; what stands there before (in a cache) counts with it.

    Args:
      positions: [B, T] int32, restarting at each segment.
      segment_ids: [B, T] int32.
      held_positions: [B, S] int32 of further tokens, or None.
      held_segments: their segments.
    """
    if held_positions is not None and held_segments is not None:
        own = jnp.concatenate([held_positions, positions], axis=1)
        named = jnp.concatenate([held_segments, segment_ids], axis=1)
    else:
        own, named = positions, segment_ids
    count = named.shape[1]
    # Few segments lie in a row, under ids that may be anything: each is known by its first place.
    first = jax.vmap(lambda row: jnp.searchsorted(jnp.sort(row), row))(named)

    def longest(own: jax.Array, first: jax.Array) -> jax.Array:
        return jnp.zeros(count, jnp.int32).at[first].max(own.astype(jnp.int32) + 1)

    lengths = jnp.take_along_axis(jax.vmap(longest)(own, first), first, axis=1)
    return lengths[:, count - positions.shape[1] :]


def rotary_tables(
    config: RotaryConfig,
    positions: Int[Array, "B T"],
    block_positions: Int[Array, "B T"] | None = None,
    lengths: Int[Array, "B T"] | None = None,
) -> Tables:
    """Cosines and sines for positions [B, T]: two float32 arrays [B, T, dim/2].

    Args:
      config: the rotation.
      positions: [B, T] int32.
      block_positions: [B, T] int32 of the second half where ``two_d``.
      lengths: [B, T] int32 of ``sequence_lengths``; needed where ``by_length``.
    """
    scaling = config.scaling
    frequency: jax.Array | np.ndarray = frequencies(config)
    if not isinstance(scaling, RotaryScaling | None):
        assert lengths is not None, "rotary frequencies by length need the lengths of sequences"
        frequency = scaling.by_length(_plain(config), lengths)
    angle = positions[..., None].astype(jnp.float32) * frequency
    if config.two_d:
        second = jnp.zeros_like(positions) if block_positions is None else block_positions
        angle = jnp.concatenate([angle, second[..., None].astype(jnp.float32) * frequency], -1)
    factor = 1.0 if scaling is None else scaling.attention_factor
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def rotate(
    x: Float[Array, "B T N H"], tables: Tables, config: RotaryConfig
) -> Float[Array, "B T N H"]:
    """Rotates the first ``config.dim`` channels of x [B, T, N, H]; same dtype, float32 inside.

    Args:
      x: [B, T, N, H].
      tables: of ``rotary_tables``.
      config: that of the tables.
    """
    cos, sin = (t[:, :, None, :] for t in tables)
    plain = config.dim == x.shape[-1] and not config.two_d
    if plain and turns_whole(x):
        return turn_whole(x, cos, sin, config.interleaved)
    turned = x[..., : config.dim].astype(jnp.float32)
    if config.two_d:
        halves = jnp.split(turned, 2, axis=-1)
        parts = zip(halves, jnp.split(cos, 2, axis=-1), jnp.split(sin, 2, axis=-1), strict=True)
        turned = jnp.concatenate([_turn(*part, config.interleaved) for part in parts], axis=-1)
    else:
        turned = _turn(turned, cos, sin, config.interleaved)
    turned = turned.astype(x.dtype)
    whole = config.dim == x.shape[-1]
    return turned if whole else jnp.concatenate([turned, x[..., config.dim :]], axis=-1)


def _turn(x: jax.Array, cos: jax.Array, sin: jax.Array, interleaved: bool) -> jax.Array:
    if interleaved:
        a, b = x[..., ::2], x[..., 1::2]
        return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


@dataclasses.dataclass(frozen=True)
class AlibiConfig:
    """Linear biases on attention logits: -slope * distance.

    Attributes:
      factor: on the biases.
      max_exponent: the last head's slope is 2^-max_exponent; 8 in the paper.
      rounded: slopes, positions and their products are bfloat16, so that far positions share a
        bias, as in the released Falcon-RW (arXiv 2306.01116).
    """

    factor: float
    max_exponent: float
    rounded: bool

    def __post_init__(self) -> None:
        check_number("AlibiConfig.factor", self.factor, above=0)
        check_number("AlibiConfig.max_exponent", self.max_exponent, above=0)


def alibi_slopes(n_heads: int, max_exponent: float) -> Float32[Array, " N"]:
    """Slopes of ALiBi (arXiv 2108.12409, section 3, and its released code): [N] float32.

    For a number of heads that is no power of two, the released code interleaves the slopes of the
    next larger one.
    """

    def powers(n: int) -> list[float]:
        return [2.0 ** (-max_exponent * (i + 1) / n) for i in range(n)]

    whole = 2 ** int(math.log2(n_heads))
    extra = powers(2 * whole)[::2][: n_heads - whole]
    return jnp.asarray(powers(whole) + extra, jnp.float32)


def alibi_bias(
    config: AlibiConfig,
    q_positions: Int[Array, "B T"],
    kv_positions: Int[Array, "B S"],
    n_heads: int,
) -> Float32[Array, "B N T S"]:
    """Biases of queries at [B, T] towards keys at [B, S]: [B, N, T, S] float32."""

    slopes = alibi_slopes(n_heads, config.max_exponent)[:, None]
    if config.rounded:
        q, kv = (
            config.factor
            * _bfloat16(_bfloat16(slopes) * _bfloat16(at.astype(jnp.float32))[:, None])
            for at in (q_positions, kv_positions)
        )
        return kv[:, :, None, :] - q[:, :, :, None]
    distance = q_positions[:, :, None] - kv_positions[:, None, :]
    return -(config.factor * slopes)[..., None] * distance[:, None].astype(jnp.float32)


def _bfloat16(x: jax.Array) -> jax.Array:
    """Rounded to bfloat16; a cast there and back may be compiled away."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
