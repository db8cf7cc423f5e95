"""Head: from hidden states to logits and log-probabilities."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t5x_llm.objectives.lm import Pieces
from t5x_llm.parallel import compute_spec, constrain, pieces

# Bytes of the kernel's float32 gradient that a device may hold whole, and of a block of it where it
# is more. In pieces the gradient of every chunk of the loss is summed over the devices, whole only
# that of the batch: the smaller is faster, and a gibibyte is little beside the activations.
WHOLE, BLOCK = 2**30, 2**28
_LANES = 128


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


def head_log_probs(
    head: Head, hidden: jax.Array, targets: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Computes log-probabilities without the logits of the whole batch at once.

    Args:
      head: the head.
      hidden: [B, T, D].
      targets: [B, T] int32.
      chunk: positions of T processed at once.

    Returns:
      ([B, T] float32 log-probability of each target, [B, T] bool, where it is the likeliest token).
    """
    t = hidden.shape[1]
    count = -(-t // min(chunk, t))
    size = -(-t // count)  # as few chunks as ``chunk`` allows, of equal length
    fill = ((0, 0), (0, count * size - t))
    hidden, targets = jnp.pad(hidden, (*fill, (0, 0))), jnp.pad(targets, fill)

    def body(_: None, i: jax.Array) -> tuple[None, tuple[jax.Array, jax.Array]]:
        x, y = (jax.lax.dynamic_slice_in_dim(a, i * size, size, axis=1) for a in (hidden, targets))
        logits = head_logits(head, x)
        hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == y[..., None]
        chosen = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
        best = jnp.argmax(logits, axis=-1) == y
        return None, (chosen - jax.nn.logsumexp(logits, axis=-1), best)

    _, found = jax.lax.scan(body, None, jnp.arange(count))
    first, second = (jnp.moveaxis(x, 0, 1).reshape(-1, count * size)[:, :t] for x in found)
    return first, second


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


def head_gradient(head: Head) -> Pieces | None:
    """Returns how the gradient of a head's kernel is added up; None where that is nothing special.

    So it is on one device, where the strategy has gradients whole, and for small kernels.
    """
    shape = head.kernel.shape
    names = ("vocab", "embed") if head.transposed else ("embed", "vocab")
    spec, used = (compute_spec(names, shape, table) for table in ("grads", "compute"))
    rows = shape[0 if head.transposed else 1]
    cut = pieces("vocab", rows)
    size = math.prod(shape) // cut * 4
    if spec is None or spec == used or size <= WHOLE:
        return None
    fitting = (n for n in range(1, rows + 1) if rows % n == 0 and rows // n % _LANES == 0)
    blocks = next((n for n in fitting if size // n <= BLOCK), 1) if cut == 1 else 1
    return Pieces(functools.partial(constrain, logical_axes=names, table="grads"), blocks)
