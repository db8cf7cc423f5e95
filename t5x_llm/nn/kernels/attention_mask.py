"""Keys that a query sees, and what all forms of attention have in common."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
MAX_SCORES = 512 * 512  # query rows x keys that are held at once

# (positions of queries, of keys) to what is added to the logits, where B may be 1.
Bias = Callable[[Int[Array, "B T"], Int[Array, "B S"]], Float32[Array, "#B N T S"]]


def score_rows(queries: int, keys: int) -> int:
    """Returns the query rows whose scores are held at once, half and half again of all of them."""
    while queries % 2 == 0 and queries * keys > MAX_SCORES:
        queries //= 2
    return queries


def visible(
    q_segment_ids: Int[Array, "B T"],
    kv_segment_ids: Int[Array, "B S"],
    q_positions: Int[Array, "B T"],
    kv_positions: Int[Array, "B S"],
    *,
    causal: bool,
    window: int | None,
    kv_prefix: Bool[Array, "B S"] | None = None,
    common: int = 0,
) -> Bool[Array, "B T S"]:
    """Returns the keys that each query sees: bool [B, T, S]. Arguments as in ``attend``."""
    seen = q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]
    if common:
        seen |= jnp.arange(kv_segment_ids.shape[1]) < common
    seen &= q_segment_ids[:, :, None] != 0
    distance = q_positions[:, :, None] - kv_positions[:, None, :]
    if causal and kv_prefix is not None:
        seen &= (distance >= 0) | kv_prefix[:, None, :]
    elif causal:
        seen &= distance >= 0
    if window is not None:
        seen &= distance < window
    return seen
