"""Config of bottleneck layers: where they stand and how they begin."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.nn.adapters.bottleneck import Bottlenecks
from t5x_llm.nn.adapters.config import Adapter
from t5x_llm.nn.adapters.places import blocks, drawn
from t5x_llm.nn.mlp import ACTIVATIONS

if TYPE_CHECKING:
    from jaxtyping import Array, Key


@dataclasses.dataclass(frozen=True)
class Bottleneck(Adapter):
    """Bottleneck layers between a block's layers and the residual stream.

    Attributes:
      form: 'houlsby' puts one after attention (or the recurrence) and one after the feed-forward
        layer (arXiv 1902.00751), 'pfeiffer' the latter alone (arXiv 2005.00247).
      size: inner width.
      activation: one of ``nn.mlp.ACTIVATIONS``.
      std: standard deviation of fresh down-projections.
      up_std: standard deviation of fresh up-projections; with 0 the model begins as its base.
    """

    form: str = "houlsby"
    size: int = 64
    activation: str = "gelu"
    std: float = 0.01
    up_std: float = 0.0

    method: ClassVar[str] = "Bottleneck"

    def __post_init__(self) -> None:
        check_choice("Bottleneck.form", self.form, ("houlsby", "pfeiffer"))
        check_number("Bottleneck.size", self.size, low=1, integer=True)
        check_choice("Bottleneck.activation", self.activation, ACTIVATIONS)
        check_number("Bottleneck.std", self.std, above=0)
        check_number("Bottleneck.up_std", self.up_std, low=0)

    def attach(self, module: Any, key: Key[Array, ""]) -> None:
        """Gives every block of a model its layers; see ``Adapter``.

        Raises:
          ConfigError: no block has a feed-forward layer, and ``form`` is 'pfeiffer'.
        """
        found, stds = 0, {"down": self.std, "up": self.up_std}
        for path, block, repeat in blocks(module):
            layers = block.config.layers
            if self.form == "pfeiffer":
                layers = tuple(x for x in layers if x is block.config.feed_forward)
            if layers:
                parts = tuple(layer.part for layer in layers)
                own = Bottlenecks(parts, block.d_model, self.size, self.activation)
                path = f"{path}.adapter"
                block.adapter = drawn(own, path, key, lambda name: stds.get(name, 0.0), repeat)
                found += 1
        if not found:
            raise ConfigError(
                "Bottleneck.form", self.form, "'houlsby', as no layer of this model is feed-forward"
            )
