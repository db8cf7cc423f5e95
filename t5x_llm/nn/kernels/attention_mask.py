"""Keys that a query sees, and what all forms of attention have in common."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
MAX_SCORES = 512 * 512  # query rows x keys that are held at once

# (positions of queries [B, T], of keys [B, S]) to what is added to the logits: [B or 1, N, T, S].
Bias = Callable[[jax.Array, jax.Array], jax.Array]


def visible(
    q_segment_ids: jax.Array,
    kv_segment_ids: jax.Array,
    q_positions: jax.Array,
    kv_positions: jax.Array,
    *,
    causal: bool,
    window: int | None,
    kv_prefix: jax.Array | None = None,
) -> jax.Array:
    """Returns the keys that each query sees: bool [B, T, S]. Arguments as in ``attend``."""
    seen = (q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]) & (
        q_segment_ids[:, :, None] != 0
    )
    distance = q_positions[:, :, None] - kv_positions[:, None, :]
    if causal and kv_prefix is not None:
        seen &= (distance >= 0) | kv_prefix[:, None, :]
    elif causal:
        seen &= distance >= 0
    if window is not None:
        seen &= distance < window
    return seen
