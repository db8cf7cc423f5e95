"""A scan over chunks of a sequence, for recurrences that run in parallel within a chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def scan_chunks(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, size: int
) -> tuple[Any, Any]:
    """Runs ``body`` over consecutive chunks of axis 1; the last one may be shorter.

    The backward pass keeps what is carried between chunks and computes their insides again.

    Args:
      body: (carry, xs of one chunk) -> (carry, ys of it), for any length up to ``size``.
      carry: a pytree.
      xs: pytree of arrays [B, T, ...].
      size: tokens of a chunk.

    Returns:
      (the last carry, ys as arrays [B, T, ...]).
    """
    length = jax.tree.leaves(xs)[0].shape[1]
    count, rest = divmod(length, size)
    parts = []
    if count:
        whole = jax.tree.map(lambda x: _split(x[:, : count * size], count), xs)
        carry, ys = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), carry, whole)
        parts.append(jax.tree.map(_join, ys))
    if rest:
        carry, ys = body(carry, jax.tree.map(lambda x: x[:, count * size :], xs))
        parts.append(ys)
    return carry, jax.tree.map(lambda *ys: jnp.concatenate(ys, axis=1), *parts)


def _split(x: jax.Array, count: int) -> jax.Array:
    """[B, T, ...] to [count, B, T / count, ...]."""
    return jnp.moveaxis(x.reshape(x.shape[0], count, -1, *x.shape[2:]), 1, 0)


def _join(x: jax.Array) -> jax.Array:
    """Inverse of ``_split``."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])
