"""Random keys by name, so that adding one use never shifts another."""

from __future__ import annotations

import zlib

import jax


def named_key(seed: int, name: str, step: int | jax.Array = 0) -> jax.Array:
    """A key that depends on (seed, name, step) and nothing else."""
    return jax.random.fold_in(fold_name(jax.random.key(seed), name), step)


def fold_name(key: jax.Array, name: str) -> jax.Array:
    """Returns a key that depends on ``key`` and ``name`` alone."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
