"""Named remat policies: which intermediate values the backward pass finds saved.

The rest is computed again. Names are those that layers give by ``nn.kernels.keep``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

from t5x_llm.nn.kernels import keep, keeps_bits

if TYPE_CHECKING:
    from jaxtyping import Array, Float

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


def keep_stream(x: Float[Array, "B T D"], remat: str) -> Float[Array, "B T D"]:
    """The input of a layer that is computed again: saved in any case, and as its bits too."""
    named = remat in _OFFLOADED_NAMES or keeps_bits(x)
    return keep(x, _STREAM) if named else x
