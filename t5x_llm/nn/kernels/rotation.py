"""The rotation of whole heads in the form that the TPU's compiler fuses."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_llm.parallel import platform

if TYPE_CHECKING:
    from jaxtyping import Array, BFloat16, Float, Float32


def turns_whole(x: Float[Array, "B T N H"]) -> bool:
    """Returns whether ``turn_whole`` is the form for heads ``x`` here: bfloat16 on TPU."""
    return x.dtype == jnp.bfloat16 and platform() == "tpu"


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def turn_whole(
    x: BFloat16[Array, "B T N H"],
    cos: Float32[Array, "B T 1 pairs"],
    sin: Float32[Array, "B T 1 pairs"],
    interleaved: bool,
) -> BFloat16[Array, "B T N H"]:
    """Rotates bfloat16 heads as the TPU's compiler fuses it: one pass over whole heads.

    The channels of a pair change places in a product with a matrix of 0, 1 and -1, which is exact;
    halves of a head would be written to memory on their own, in float32 and half empty tiles.

    Args:
      x: [B, T, N, H] bfloat16.
      cos: [B, T, 1, H/2] float32.
      sin: likewise.
      interleaved: see ``RotaryConfig``.
    """
    half = np.arange(x.shape[-1] // 2)
    first, second = (2 * half, 2 * half + 1) if interleaved else (half, half + half.size)
    change = np.zeros((x.shape[-1], x.shape[-1]), np.float32)
    change[second, first], change[first, second] = -1, 1
    if interleaved:
        cos, sin = (jnp.repeat(t, 2, axis=-1) for t in (cos, sin))
    else:
        cos, sin = (jnp.concatenate([t, t], axis=-1) for t in (cos, sin))
    dims = (((3,), (0,)), ((), ()))
    changed = jax.lax.dot_general(
        x, jnp.asarray(change, x.dtype), dims, preferred_element_type=jnp.float32
    )
    y = x.astype(jnp.float32) * cos + changed * sin
    return y.astype(x.dtype)


def _turn_whole_fwd(x: jax.Array, cos: jax.Array, sin: jax.Array, interleaved: bool) -> Any:
    return turn_whole(x, cos, sin, interleaved), (cos, sin)


def _turn_whole_bwd(interleaved: bool, tables: tuple[jax.Array, jax.Array], dy: jax.Array) -> Any:
    cos, sin = tables
    return turn_whole(dy, cos, -sin, interleaved), None, None


turn_whole.defvjp(_turn_whole_fwd, _turn_whole_bwd)
