"""Random keys by name, so that adding one use never shifts another."""

from __future__ import annotations

import zlib

import jax


def named_key(seed: int, name: str, step: int | jax.Array = 0) -> jax.Array:
    """A key that depends on (seed, name, step) and nothing else."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()) & 0x7FFFFFFF)
    return jax.random.fold_in(key, step)
