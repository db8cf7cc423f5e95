"""Parameters with logical axis names, and the initialisers that fill them."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import check_number

if TYPE_CHECKING:
    from jaxtyping import Array, Float32


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Init of fresh weights: normal everywhere, zeros for biases, ones for norm scales.

    Attributes:
      kernel_std: standard deviation of kernels; None means 1/sqrt(fan in) (PaLM, arXiv
        2204.02311, section 2).
      embed_std: standard deviation of the embedding tables.
      residual_scale: factor on the kernels that write to the residual stream; GPT-2 uses
        1/sqrt(2 L).
      branch_scale: factor on the value, up and gate kernels; with ``residual_scale`` it is
        DeepNorm's beta (arXiv 2203.00555, section 4.3).
      query_scale: factor on the query kernels; 1/sqrt(H) where logits are not scaled by it (T5).
    """

    kernel_std: float | None
    embed_std: float
    residual_scale: float
    branch_scale: float
    query_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kernel_std is not None:
            check_number("InitConfig.kernel_std", self.kernel_std, above=0)
        check_number("InitConfig.embed_std", self.embed_std, above=0)
        check_number("InitConfig.residual_scale", self.residual_scale, above=0)
        check_number("InitConfig.branch_scale", self.branch_scale, above=0)
        check_number("InitConfig.query_scale", self.query_scale, above=0)

    def kernel(self, fan_in: int, residual: bool = False, branch: bool = False) -> float:
        """Standard deviation of a kernel with ``fan_in`` inputs."""
        std = self.kernel_std if self.kernel_std is not None else 1.0 / math.sqrt(fan_in)
        return std * (self.residual_scale if residual else self.branch_scale if branch else 1.0)


def normal(
    rngs: nnx.Rngs, shape: tuple[int, ...], std: float, axes: tuple[str, ...]
) -> nnx.Param[Float32[Array, " ..."]]:
    """A float32 parameter drawn from N(0, std^2); ``axes`` are its logical names."""
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32), logical=axes)


def constant(
    shape: tuple[int, ...], value: float, axes: tuple[str, ...]
) -> nnx.Param[Float32[Array, " ..."]]:
    """A float32 parameter filled with ``value``; ``axes`` are its logical names."""
    return nnx.Param(jnp.full(shape, value, jnp.float32), logical=axes)
