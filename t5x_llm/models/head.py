"""From hidden states to logits."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Head(NamedTuple):
    """logits = cap(scale * (hidden @ kernel + bias)).

    Attributes:
      kernel: [D, V], or [V, D] if ``transposed``, in the compute dtype.
      transposed: the kernel is an embedding table.
      bias: [V] float32, or None.
      scale: factor on the logits, or None.
      softcap: logits become softcap * tanh(logits / softcap), or None.
    """

    kernel: jax.Array
    transposed: bool
    bias: jax.Array | None
    scale: float | None
    softcap: float | None


def head_logits(head: Head, hidden: jax.Array) -> jax.Array:
    """Hidden [..., D] to logits [..., V], float32."""
    axis = 1 if head.transposed else 0
    dims = (((hidden.ndim - 1,), (axis,)), ((), ()))
    logits = jax.lax.dot_general(hidden, head.kernel, dims, preferred_element_type=jnp.float32)
    if head.bias is not None:
        logits = logits + head.bias
    if head.scale is not None:
        logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * jnp.tanh(logits / head.softcap)
    return logits
