"""Values under names that remat policies can ask to save, in the form that suits the platform."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t5x_llm.nn.kernels.products import one_cpu

if TYPE_CHECKING:
    from jaxtyping import Array, Shaped


def keeps_bits(x: Shaped[Array, "*shape"]) -> bool:
    """Returns whether ``keep`` saves ``x`` as its bits."""
    return x.dtype == jnp.bfloat16 and one_cpu()


def keep(x: Shaped[Array, "*shape"], name: str) -> Shaped[Array, "*shape"]:
    """Returns ``x`` itself, under a name that remat policies can ask to save.

    On a single CPU device bfloat16 is kept as its bits: XLA's CPU backend in jax 0.10 widens a
    scan's whole stack of bfloat16 values to float32 to write one layer's into it.
    """
    if keeps_bits(x):
        return _keep_bits(name, x)
    return checkpoint_name(x, name)


def _bits(name: str, x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, jnp.uint16)
    return jax.lax.bitcast_convert_type(checkpoint_name(bits, name), x.dtype)


# Its forward rule must be written out: a policy does not look into a custom_vjp call.
_keep_bits = jax.custom_vjp(_bits, nondiff_argnums=(0,))
_keep_bits.defvjp(lambda name, x: (_bits(name, x), None), lambda name, _, dy: (dy,))
