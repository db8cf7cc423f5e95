"""Logit warping as array functions, with the semantics of transformers' logits processors.

Every function maps float32 logits [B, V] to float32 [B, V]; removed tokens become -inf.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Float32, Int


def repetition_penalty(
    logits: Float32[Array, "B V"], seen: Bool[Array, "B V"], penalty: Float[Array, ""]
) -> Float32[Array, "B V"]:
    """Divides positive and multiplies negative logits of tokens seen before (arXiv 1909.05858).

    Args:
      logits: [B, V].
      seen: [B, V] bool, tokens of the prompt and of the completion so far.
      penalty: scalar; above 1 discourages.
    """
    penalised = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(seen, penalised, logits)


def temperature(logits: Float32[Array, "B V"], value: Float[Array, ""]) -> Float32[Array, "B V"]:
    """Logits over a positive temperature."""
    return logits / value


def top_k(logits: Float32[Array, "B V"], k: Int[Array, ""]) -> Float32[Array, "B V"]:
    """Keeps the k largest logits of each row; ties with the k-th stay (arXiv 1805.04833)."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    kth = jnp.take(ordered, jnp.clip(k, 1, logits.shape[-1]) - 1, axis=-1)
    return jnp.where(logits < kth[:, None], -jnp.inf, logits)


def top_p(logits: Float32[Array, "B V"], p: Float[Array, ""]) -> Float32[Array, "B V"]:
    """Keeps the smallest set of likeliest tokens whose probability reaches p (arXiv 1904.09751).

    At least one token stays, and so do ties with the least likely token kept.
    """
    ordered = jnp.sort(logits, axis=-1)
    below = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
    kept = (below > 1 - p).at[:, -1].set(True)
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < least, -jnp.inf, logits)
