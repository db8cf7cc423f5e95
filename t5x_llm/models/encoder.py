"""The generic encoder of masked language models: layers that look both ways, and their head."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.models.decoder import Decoder, DecoderConfig
from t5x_llm.nn.dense import Dense, Embedding
from t5x_llm.nn.mlp import ACTIVATIONS
from t5x_llm.nn.norm import Norm, NormConfig


@dataclasses.dataclass(frozen=True)
class TransformConfig:
    """Layer between the last block and the head (BERT, arXiv 1810.04805): norm(f(Wx + b)).

    Attributes:
      activation: one of ``nn.mlp.ACTIVATIONS``.
      norm: after it.
    """

    activation: str
    norm: NormConfig

    def __post_init__(self) -> None:
        check_choice("TransformConfig.activation", self.activation, ACTIVATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(DecoderConfig):
    """A masked language model; its layers' attention is not causal.

    Attributes:
      token_types: rows of a table of token types, of which only the first is used, for all tokens
        (BERT's tell two sentences apart); 0 for no table.
      transform: before the head, or None.
    """

    kind: ClassVar[str] = "encoder"

    token_types: int
    transform: TransformConfig | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("EncoderConfig.token_types", self.token_types, low=0, integer=True)
        for block in (b for group in self.groups for b in group.blocks):
            if getattr(block.mixer, "causal", True):
                raise ConfigError("AttentionConfig.causal", True, "False in an encoder")

    def make(self, rngs: nnx.Rngs) -> Encoder:
        """The module."""
        return Encoder(self, rngs)


class Transform(nnx.Module):
    """[B, T, D] -> [B, T, D]."""

    def __init__(self, config: TransformConfig, d_model: int, std: float, rngs: nnx.Rngs):
        self.config = config
        kwargs: dict[str, Any] = dict(std=std, bias=True, rngs=rngs, exact=True)
        self.dense = Dense((d_model,), (d_model,), ("embed",), ("rank",), **kwargs)
        self.norm = Norm(config.norm, d_model)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(ACTIVATIONS[self.config.activation](self.dense(x)))


class Encoder(Decoder):
    """Tokens [B, T] to the hidden states [B, T, D] that the head reads."""

    config: EncoderConfig

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        if config.token_types:
            rows, d = config.token_types, config.embed_dim or config.d_model
            self.type_embed = Embedding(rows, d, config.init.embed_std, rngs, axis="positions")
        if config.transform is not None:
            std = config.init.kernel(config.d_model)
            self.transform = Transform(config.transform, config.d_model, std, rngs)

    def init_cache(
        self, batch: int, length: int, dtype: jnp.dtype, prefix: bool = False
    ) -> dict[str, Any]:
        """Refused.

        Raises:
          ConfigError: always.
        """
        raise ConfigError(
            "model", "an encoder", "a decoder or an encoder-decoder",
            "A masked language model fills in what is masked; it cannot continue a text.",
        )  # fmt: skip

    def looked_up(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Returns the rows, with that of the one token type added."""
        x = super().looked_up(tokens, dtype)
        return x + self.type_embed.weights(dtype)[0] if self.config.token_types else x

    def normed(self, x: jax.Array) -> jax.Array:
        """Transformed as well."""
        x = super().normed(x)
        return x if self.config.transform is None else self.transform(x)
