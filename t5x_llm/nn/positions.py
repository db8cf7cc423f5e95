"""Rotary position embedding (RoPE, arXiv 2104.09864), rotate-half layout as in LLaMA and NeoX."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from t5x_llm.core.errors import ConfigError, check_number


@dataclasses.dataclass(frozen=True)
class RotaryConfig:
    """Rotation of query and key heads by position.

    Attributes:
      theta: base of the geometric series of wavelengths.
      head_dim: H, the size of the rotated head; even.
    """

    theta: float
    head_dim: int

    def __post_init__(self) -> None:
        check_number("RotaryConfig.theta", self.theta, above=0)
        check_number("RotaryConfig.head_dim", self.head_dim, low=2, integer=True)
        if self.head_dim % 2:
            raise ConfigError(
                "RotaryConfig.head_dim",
                self.head_dim,
                "an even number",
                "RoPE rotates pairs of channels.",
            )


def rotary_tables(config: RotaryConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines for positions [B, T]: two float32 arrays [B, T, H/2]."""
    exponent = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    angle = positions[..., None].astype(jnp.float32) / config.theta**exponent
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates x [B, T, N, H] by ``tables`` [B, T, H/2]; same dtype out, float32 inside."""
    cos, sin = (t[:, :, None, :] for t in tables)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
