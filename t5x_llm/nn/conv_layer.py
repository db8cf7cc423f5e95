"""A short convolution as a layer of its own, in front of a block's mixer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from flax import nnx

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.nn.block import BlockConfig
from t5x_llm.nn.cache import CachedLayer
from t5x_llm.nn.conv import ShortConv
from t5x_llm.nn.layer import Aux, Cache, Context, LayerConfig
from t5x_llm.nn.param import InitConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class ConvConfig:
    """A causal convolution over time, channel by channel, with bias.

    Attributes:
      taps: tokens that it sees, the present one included.
    """

    taps: int

    part: ClassVar[str] = "conv"

    def __post_init__(self) -> None:
        check_number("ConvConfig.taps", self.taps, low=1, integer=True)

    def make(self, d_model: int, init: InitConfig, rngs: nnx.Rngs) -> Conv:
        """The layer."""
        return Conv(self, d_model, rngs)


class Conv(CachedLayer):
    """[B, T, D] -> [B, T, D] within a segment."""

    def __init__(self, config: ConvConfig, d_model: int, rngs: nnx.Rngs):
        self.config, self.d_model = config, d_model
        self.filter = ShortConv(config.taps, d_model, "embed", bias=True, rngs=rngs)

    def cache_kinds(self) -> dict[str, Any]:
        """Returns the inputs of the last tokens: [B, taps - 1, D]."""
        return {"taps": self.filter.cache_kind}

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Cache | None, Aux]:
        before = None if cache is None else cache["taps"]
        y, taps = self.filter(x, context.starts, before, context.rows)
        return y, None if cache is None else {"taps": taps}, {}


@dataclasses.dataclass(frozen=True)
class ConvBlockConfig(BlockConfig):
    """A block with one more layer before the mixer (TTT in the Mamba backbone).

    Attributes:
      conv: that layer.
    """

    conv: LayerConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parallel != "no":
            raise ConfigError("BlockConfig.parallel", self.parallel, "'no' with a convolution")

    @property
    def layers(self) -> tuple[LayerConfig, ...]:
        """The layers in the order that they run."""
        return (self.conv, *super().layers)
