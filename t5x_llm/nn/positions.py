"""Positions inside attention: rotary embedding (RoPE, arXiv 2104.09864) and ALiBi (2108.12409)."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.nn.kernels import turn_whole, turns_whole

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Int

    Tables = tuple[Float32[Array, "B T pairs"], Float32[Array, "B T pairs"]]


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """Stretch of rotary frequencies for contexts longer than the pretrained one.

    Attributes:
      kind: 'linear' (arXiv 2306.15595), 'llama3' (arXiv 2407.21783, section 3.4.1, as released) or
        'yarn' (arXiv 2309.00071).
      factor: how many times longer.
      original_length: the pretrained context; 0 for 'linear'.
      low: llama3's low_freq_factor, yarn's beta_slow; 1 for 'linear'.
      high: llama3's high_freq_factor, yarn's beta_fast; 4 for 'linear'.
      attention_factor: yarn's factor on cosines and sines; 1 for the others.
    """

    kind: str
    factor: float
    original_length: int
    low: float
    high: float
    attention_factor: float

    def __post_init__(self) -> None:
        check_choice("RotaryScaling.kind", self.kind, ("linear", "llama3", "yarn"))
        check_number("RotaryScaling.factor", self.factor, low=1)
        check_number("RotaryScaling.attention_factor", self.attention_factor, above=0)
        neutral = {} if self.kind == "yarn" else {"attention_factor": 1.0}
        if self.kind == "linear":
            neutral |= {"original_length": 0, "low": 1.0, "high": 4.0}
        else:
            check_number("RotaryScaling.original_length", self.original_length, low=1, integer=True)
            check_number("RotaryScaling.low", self.low, above=0)
            check_number("RotaryScaling.high", self.high, above=self.low)
        for name, value in neutral.items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"RotaryScaling.{name}",
                    getattr(self, name),
                    f"{value}, as {self.kind!r} has no such thing",
                )


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
    scaling: RotaryScaling | None
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


def frequencies(config: RotaryConfig) -> Float32[np.ndarray, " pairs"]:
    """Radians a position for each pair: [dim/2] float32 (of each half where ``two_d``: [dim/4]).

    Rounded once: a power in float32 is a few units off, which 512 positions make 1e-4 of a logit.
    """
    dim = config.dim // 2 if config.two_d else config.dim
    plain = config.theta ** -(np.arange(0, dim, 2) / dim)
    scaling = config.scaling
    if scaling is None:
        return plain.astype(np.float32)
    if scaling.kind == "linear":
        return (plain / scaling.factor).astype(np.float32)
    if scaling.kind == "llama3":
        turns = scaling.original_length * plain / (2 * math.pi)
        smooth = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
        return (plain * (smooth + (1.0 - smooth) / scaling.factor)).astype(np.float32)

    def channel(turns: float) -> float:  # the pair that turns so often over the original length
        ratio = scaling.original_length / (turns * 2 * math.pi)
        return dim * math.log(ratio) / (2 * math.log(config.theta))

    low = max(math.floor(channel(scaling.high)), 0)
    high = min(math.ceil(channel(scaling.low)), dim - 1)
    ramp = (np.arange(dim // 2) - low) / max(high - low, 1e-3)
    keep = 1.0 - np.clip(ramp, 0.0, 1.0)
    return (plain * (keep + (1.0 - keep) / scaling.factor)).astype(np.float32)


def rotary_tables(
    config: RotaryConfig,
    positions: Int[Array, "B T"],
    block_positions: Int[Array, "B T"] | None = None,
) -> Tables:
    """Cosines and sines for positions [B, T]: two float32 arrays [B, T, dim/2]."""
    frequency = frequencies(config)
    angle = positions[..., None].astype(jnp.float32) * frequency
    if config.two_d:
        second = jnp.zeros_like(positions) if block_positions is None else block_positions
        angle = jnp.concatenate([angle, second[..., None].astype(jnp.float32) * frequency], -1)
    factor = 1.0 if config.scaling is None else config.scaling.attention_factor
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
