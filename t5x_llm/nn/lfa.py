"""Localized filtering (Yuan 2.0, arXiv 2311.15786, section 2.1): two short causal convolutions.

y = norm(x + conv2(conv1(x))), each convolution over a token and the one before it, dense over
channels, D to D / 2 and back, without an activation between them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from t5x_llm.nn.cache import CachedLayer, RecentCache
from t5x_llm.nn.dense import Dense
from t5x_llm.nn.earlier import earlier
from t5x_llm.nn.layer import Aux, Cache, Context
from t5x_llm.nn.norm import Norm, NormConfig
from t5x_llm.nn.param import InitConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@dataclasses.dataclass(frozen=True)
class LocalFilterConfig:
    """A filter of the input of queries and keys.

    Attributes:
      norm: of the output.
    """

    norm: NormConfig

    part: ClassVar[str] = "qk_filter"

    def make(self, d_model: int, init: InitConfig, rngs: nnx.Rngs) -> LocalFilter:
        """The layer."""
        return LocalFilter(self, d_model, init, rngs)


class LocalFilter(CachedLayer):
    """[B, T, D] -> [B, T, D] within a segment; a token sees itself and the two before it."""

    def __init__(self, config: LocalFilterConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs):
        inner = d_model // 2
        self.conv1 = Dense(
            *((2, d_model), (inner,), ("conv", "embed"), ("inner",)),
            std=init.kernel(2 * d_model),
            bias=True,
            rngs=rngs,
        )
        self.conv2 = Dense(
            *((2, inner), (d_model,), ("conv", "inner"), ("embed",)),
            std=init.kernel(2 * inner),
            bias=True,
            rngs=rngs,
        )
        self.norm = Norm(config.norm, d_model)

    def cache_kinds(self) -> dict[str, Any]:
        """Returns the last input of each convolution: [B, 1, D] and [B, 1, D / 2]."""
        inner, d_model = self.conv2.kernel.shape[-2:]
        return {"conv1": RecentCache(1, (d_model,)), "conv2": RecentCache(1, (inner,))}

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Cache | None, Aux]:
        y, new = x, Cache()
        for name in ("conv1", "conv2"):
            last = jnp.zeros_like(y[:, 0])[:, None] if cache is None else cache[name]
            new[name] = y
            y = getattr(self, name)(jnp.stack([before(y, last, context.starts), y], axis=-2))
        return self.norm(x + y), self.write_cache(cache, new, context.rows), {}


def before(
    x: Float[Array, "B T C"], last: Float[Array, "B 1 C"], starts: Bool[Array, "B T"]
) -> Float[Array, "B T C"]:
    """The token before each of x [B, T, C], zeros where a segment starts.

    What a convolution finds before the first token is zero, and not what an earlier layer with a
    bias would make of zero.

    Args:
      x: [B, T, C].
      last: [B, 1, C], what comes before the first.
      starts: ``Context.starts``.
    """
    (shifted,) = earlier(x, last.astype(x.dtype))
    return jnp.where(starts[..., None], 0, shifted)
