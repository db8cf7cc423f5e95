"""The one matrix product that every layer uses.

On TPU, GPU and any mesh of several devices it is a plain ``dot_general``. On a single CPU device
the products are put in the forms that XLA's fast kernels take (see ``_product``): jax 0.10 and
0.12 run bfloat16 in the plain forms at half that speed, in the transposed ones at a third, and
for float32 kernels' gradients they transpose both operands where one is enough.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from t5x_llm.parallel import current, platform

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_Dims = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


def linear(
    x: Float[Array, " ..."], kernel: Float[Array, " ..."], n_inputs: int = 1
) -> Float[Array, " ..."]:
    """Contracts the trailing ``n_inputs`` axes of ``x`` with the leading ones of ``kernel``.

    Covers x [B, T, D] @ [D, F], [D, N, H], and [B, T, N, H] @ [N, H, D] (n_inputs = 2).

    Args:
      x: [..., *inputs].
      kernel: [*inputs, *outputs], same dtype as ``x``.
      n_inputs: number of contracted axes.

    Returns:
      [..., *outputs] in the dtype of ``x``.
    """
    if x.dtype == kernel.dtype and one_cpu():
        rows, inner = x.shape[: x.ndim - n_inputs], kernel.shape[:n_inputs]
        size = math.prod(inner)
        y = _matmul(x.reshape(-1, size), kernel.reshape(size, -1))
        return y.reshape(*rows, *kernel.shape[n_inputs:])
    inputs = tuple(range(n_inputs))
    trailing = tuple(range(x.ndim - n_inputs, x.ndim))
    return jax.lax.dot_general(x, kernel, ((trailing, inputs), ((), ())))


def one_cpu() -> bool:
    """Returns whether the computation being traced is for a single CPU device."""
    context = current()
    return platform() == "cpu" and (context is None or context.mesh.size == 1)


def row_major(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``x`` as it is, its transposition carried out: XLA may not fold it into the next product.

    Only a row-major array is the reshape of a flat one.
    """
    return jax.lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)


def _product(a: jax.Array, b: jax.Array, b_axis: int) -> jax.Array:
    """a [M, K] times b, contracted along ``b_axis``, in a form with a fast kernel.

    Those are row-major products with a float32 result that contract the last axis of ``a``.
    """
    dims: _Dims = (((1,), (b_axis,)), ((), ()))
    y = jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)
    return y.astype(a.dtype)


@jax.custom_vjp
def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [M, D] @ kernel [D, F]."""
    return _product(x, kernel, 0)


def _matmul_fwd(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, kernel, 0), (x, kernel)


def _matmul_bwd(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    dx = _product(dy, kernel, 1)
    if kernel.shape[0] <= kernel.shape[1]:  # transpose the narrower of the two
        return dx, _product(row_major(x.T), dy, 0)
    # Without the barrier XLA may fold the transposition into a product it then cannot run.
    return dx, jax.lax.optimization_barrier(_product(row_major(dy.T), x, 0)).T


_matmul.defvjp(_matmul_fwd, _matmul_bwd)
