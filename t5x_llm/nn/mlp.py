"""Feed-forward layers: plain (GELU, ReLU) and gated (SwiGLU, GeGLU; arXiv 2002.05202)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import check_choice, check_number
from t5x_llm.nn.cache import CachedLayer
from t5x_llm.nn.dense import Dense
from t5x_llm.nn.kernels import keep
from t5x_llm.nn.layer import Aux, Cache, Context
from t5x_llm.nn.param import InitConfig
from t5x_llm.parallel import constrain

if TYPE_CHECKING:
    from jaxtyping import Array, Float

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
}


@dataclasses.dataclass(frozen=True)
class MlpConfig:
    """A feed-forward layer.

    Attributes:
      d_ff: F, the inner width.
      activation: one of ACTIVATIONS.
      gated: multiply the activation by a second projection (SwiGLU, GeGLU).
      bias: whether the projections carry biases.
    """

    d_ff: int
    activation: str
    gated: bool
    bias: bool

    part: ClassVar[str] = "mlp"

    def __post_init__(self) -> None:
        check_number("MlpConfig.d_ff", self.d_ff, low=1, integer=True)
        check_choice("MlpConfig.activation", self.activation, ACTIVATIONS)

    def make(self, d_model: int, init: InitConfig, rngs: nnx.Rngs) -> Mlp:
        """The layer."""
        return Mlp(self, d_model, init, rngs)


class Mlp(CachedLayer):
    """[B, T, D] -> [B, T, D]."""

    def __init__(self, config: MlpConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs):
        self.config = config
        up = dict(std=init.kernel(d_model, branch=True), bias=config.bias, rngs=rngs)
        if config.gated:
            self.gate = Dense((d_model,), (config.d_ff,), ("embed",), ("mlp",), **up)
        self.up = Dense((d_model,), (config.d_ff,), ("embed",), ("mlp",), **up)
        self.down = Dense(
            (config.d_ff,),
            (d_model,),
            ("mlp",),
            ("embed",),
            std=init.kernel(config.d_ff, residual=True),
            bias=config.bias,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Cache | None, Aux]:
        return self.apply(x), cache, {}

    def apply(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """x [B, T, D] to [B, T, D]."""
        activation = ACTIVATIONS[self.config.activation]
        h = keep(self.up(x), "mlp_up")
        if self.config.gated:
            h = activation(keep(self.gate(x), "mlp_gate")) * h
        else:
            h = activation(h)
        h = constrain(h, ("batch", "length", "mlp"))
        return keep(self.down(h), "mlp_out")
