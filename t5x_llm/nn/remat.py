"""Named remat policies: which intermediate values the backward pass finds saved.

The rest is computed again. Names are those that layers give by ``keep``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t5x_llm.nn.linear import one_cpu

_ATTENTION = ("query", "key", "value", "context", "log_sum", "attention_out")
_MIXER = ("mixer_in", "mixer_gate", "mixer_out")
_SAVED_NAMES: dict[str, tuple[str, ...]] = {
    "save_qkv": ("query", "key", "value"),
    "save_qkv_context": ("query", "key", "value", "context", "log_sum"),
    "save_attention": (*_ATTENTION, *_MIXER),
    "save_attention_up": (*_ATTENTION, *_MIXER, "mlp_up"),
    "save_projections": (*_ATTENTION, *_MIXER, "mlp_gate", "mlp_up", "mlp_out"),
}
_STREAM = "stream"
PRODUCT = "product"  # of 8-bit numbers, once it is as wide as what it was made of
# Saved in the host's memory, from where the backward pass fetches it layer by layer.
_OFFLOADED_NAMES: dict[str, tuple[str, ...]] = {
    "offload_stream": (_STREAM,),
    "offload_projections": (_STREAM, *_SAVED_NAMES["save_projections"]),
}
REMAT = ("none", "full", "dots", *_SAVED_NAMES, *_OFFLOADED_NAMES)


def remat_policy(name: str) -> Any:
    """The jax.checkpoint policy of a named choice other than 'none'."""
    policies = jax.checkpoint_policies
    if name in _OFFLOADED_NAMES:
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=list(_OFFLOADED_NAMES[name]),
            offload_src="device",
            offload_dst="pinned_host",
        )
    if name == "dots":
        return policies.save_from_both_policies(
            _wide_dots, policies.save_only_these_names(_STREAM, PRODUCT)
        )
    return policies.save_only_these_names(_STREAM, *_SAVED_NAMES.get(name, ()))


def _wide_dots(primitive: Any, *operands: Any, **params: Any) -> Any:
    """Products but those of 8-bit numbers, whose sums are int32 before they are scaled."""
    if any(x.dtype.itemsize == 1 for x in operands if hasattr(x, "dtype")):
        return False
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return dots(primitive, *operands, **params)


def keep(x: jax.Array, name: str) -> jax.Array:
    """``x`` itself, under a name that remat policies can ask to save.

    On a single CPU device bfloat16 is kept as its bits: XLA's CPU backend in jax 0.10 widens a
    scan's whole stack of bfloat16 values to float32 to write one layer's into it.
    """
    if x.dtype == jnp.bfloat16 and one_cpu():
        return _keep_bits(name, x)
    return checkpoint_name(x, name)


def keep_stream(x: jax.Array, remat: str) -> jax.Array:
    """The input of a layer that is computed again: saved in any case, and as its bits too."""
    named = remat in _OFFLOADED_NAMES or (x.dtype == jnp.bfloat16 and one_cpu())
    return keep(x, _STREAM) if named else x


def _bits(name: str, x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, jnp.uint16)
    return jax.lax.bitcast_convert_type(checkpoint_name(bits, name), x.dtype)


# Its forward rule must be written out: a policy does not look into a custom_vjp call.
_keep_bits = jax.custom_vjp(_bits, nondiff_argnums=(0,))
_keep_bits.defvjp(lambda name, x: (_bits(name, x), None), lambda name, _, dy: (dy,))
