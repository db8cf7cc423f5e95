"""RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450), statistics in float32."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import check_choice, check_number
from t5x_llm.nn.param import constant


@dataclasses.dataclass(frozen=True)
class NormConfig:
    """A normalisation over the last axis.

    Attributes:
      kind: 'rms' or 'layer'.
      eps: added to the variance.
      bias: whether a learned shift follows the scale.
    """

    kind: str
    eps: float
    bias: bool

    def __post_init__(self) -> None:
        check_choice("NormConfig.kind", self.kind, ("rms", "layer"))
        check_number("NormConfig.eps", self.eps, above=0)


class Norm(nnx.Module):
    """Normalises [..., D] to [..., D] in the input's dtype."""

    def __init__(self, config: NormConfig, width: int):
        self.config = config
        self.scale = constant((width,), 1.0, ("norm",))
        if config.bias:
            self.bias = constant((width,), 0.0, ("norm",))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        if self.config.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(variance + self.config.eps) * self.scale[...]
        if self.config.bias:
            y = y + self.bias[...]
        return y.astype(x.dtype)
