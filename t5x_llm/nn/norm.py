"""RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450), statistics in float32."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.nn.param import constant

if TYPE_CHECKING:
    from jaxtyping import Array, Float

SCALES = ("ones", "zeros", "none")


@dataclasses.dataclass(frozen=True)
class NormConfig:
    """A normalisation over the last axis.

    Attributes:
      kind: 'rms' or 'layer'.
      eps: added to the variance.
      bias: whether a learned shift follows the scale.
      scale: the learned factor: 'ones' begins at one; 'zeros' is stored less one, so that weight
        decay pulls it to one (Gemma, arXiv 2403.08295); 'none' has no factor (OLMo, arXiv
        2402.00838, section 2.1).
    """

    kind: str
    eps: float
    bias: bool
    scale: str

    def __post_init__(self) -> None:
        check_choice("NormConfig.kind", self.kind, ("rms", "layer"))
        check_choice("NormConfig.scale", self.scale, SCALES)
        check_number("NormConfig.eps", self.eps, above=0)
        if self.bias and self.scale == "none":
            raise ConfigError("NormConfig.bias", True, "False where NormConfig.scale is 'none'")


class Norm(nnx.Module):
    """Normalises [..., *shape] over the last axis, in the input's dtype.

    Args:
      config: what to do.
      width: size of the last axis.
      heads: learn a scale for each of so many heads instead of one for all: [..., heads, width].
    """

    def __init__(self, config: NormConfig, width: int, heads: int | None = None):
        self.config = config
        shape = (width,) if heads is None else (heads, width)
        axes = ("norm",) if heads is None else ("heads", "norm")
        if config.scale != "none":
            self.scale = constant(shape, 1.0 if config.scale == "ones" else 0.0, axes)
        if config.bias:
            self.bias = constant(shape, 0.0, axes)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        y = x.astype(jnp.float32)
        if self.config.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(variance + self.config.eps)
        if self.config.scale != "none":
            scale = self.scale[...]
            y = y * (scale + 1.0 if self.config.scale == "zeros" else scale)
        if self.config.bias:
            y = y + self.bias[...]
        return y.astype(x.dtype)
