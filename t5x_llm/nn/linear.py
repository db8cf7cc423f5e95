"""The one matrix product that every layer uses."""

from __future__ import annotations

import jax


def linear(x: jax.Array, kernel: jax.Array, n_inputs: int = 1) -> jax.Array:
    """Contracts the trailing ``n_inputs`` axes of ``x`` with the leading ones of ``kernel``.

    Covers x [B, T, D] @ [D, F], [D, N, H], and [B, T, N, H] @ [N, H, D] (n_inputs = 2).

    Args:
      x: [..., *inputs].
      kernel: [*inputs, *outputs], same dtype as ``x``.
      n_inputs: number of contracted axes.

    Returns:
      [..., *outputs] in the dtype of ``x``.
    """
    inputs = tuple(range(n_inputs))
    trailing = tuple(range(x.ndim - n_inputs, x.ndim))
    return jax.lax.dot_general(x, kernel, ((trailing, inputs), ((), ())))
