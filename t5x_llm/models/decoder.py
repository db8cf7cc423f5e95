"""The generic decoder: embedding, groups of blocks, a final norm and a head."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import check_number
from t5x_llm.nn.attention import Context
from t5x_llm.nn.block import RESIDUAL, Group, GroupConfig
from t5x_llm.nn.dense import Dense, Embedding
from t5x_llm.nn.norm import Norm, NormConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.positions import rotary_tables
from t5x_llm.parallel import constrain


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only language model.

    Attributes:
      vocab_size: V.
      d_model: D.
      groups: the layers.
      final_norm: norm before the head.
      learned_positions: rows of a learned position table, or None (rotary or none).
      tied: the head is the embedding table.
      init: how fresh weights are drawn.
    """

    vocab_size: int
    d_model: int
    groups: tuple[GroupConfig, ...]
    final_norm: NormConfig
    learned_positions: int | None
    tied: bool
    init: InitConfig

    def __post_init__(self) -> None:
        check_number("DecoderConfig.vocab_size", self.vocab_size, low=2, integer=True)
        check_number("DecoderConfig.d_model", self.d_model, low=1, integer=True)
        if self.learned_positions is not None:
            check_number(
                "DecoderConfig.learned_positions", self.learned_positions, low=1, integer=True
            )

    @property
    def n_layers(self) -> int:
        """L."""
        return sum(group.n_layers for group in self.groups)


class Decoder(nnx.Module):
    """Tokens [B, T] to hidden states [B, T, D]; ``logits`` maps those to [B, T, V]."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        d, init = config.d_model, config.init
        self.embed = Embedding(config.vocab_size, d, init.embed_std, rngs)
        if config.learned_positions is not None:
            rows = config.learned_positions
            self.position_embed = Embedding(rows, d, init.embed_std, rngs, axis="positions")
        for i, group in enumerate(config.groups):
            setattr(self, f"group_{i}", Group(group, d, init, rngs))
        self.final_norm = Norm(config.final_norm, d)
        if not config.tied:
            self.head = Dense(
                (d,),
                (config.vocab_size,),
                ("embed",),
                ("vocab",),
                std=init.kernel(d),
                bias=False,
                rngs=rngs,
            )

    def init_cache(self, batch: int, length: int, dtype: jnp.dtype) -> dict[str, Any]:
        """An empty decoding cache for ``batch`` rows of up to ``length`` tokens."""
        layers = {
            f"group_{i}": getattr(self, f"group_{i}").init_cache(batch, length, dtype)
            for i in range(len(self.config.groups))
        }
        return {
            "layers": layers,
            "index": jnp.zeros((), jnp.int32),
            "positions": jnp.zeros((batch, length), jnp.int32),
            "segment_ids": jnp.zeros((batch, length), jnp.int32),
        }

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: dict[str, Any] | None,
        dtype: jnp.dtype,
        remat: str,
    ) -> tuple[jax.Array, dict[str, Any] | None]:
        x = self.embed(tokens, dtype)
        if self.config.learned_positions is not None:
            x = x + self.position_embed(positions, dtype)
        x = constrain(x, RESIDUAL)

        rotary = {
            block.attention.rotary: rotary_tables(block.attention.rotary, positions)
            for group in self.config.groups
            for block in group.blocks
            if block.attention.rotary is not None
        }
        context = Context(positions, segment_ids, rotary)
        new: dict[str, Any] | None = None
        if cache is not None:
            index = cache["index"]
            write = jax.lax.dynamic_update_slice_in_dim
            new = {
                "layers": {},
                "index": index + tokens.shape[1],
                "positions": write(cache["positions"], positions, index, axis=1),
                "segment_ids": write(cache["segment_ids"], segment_ids, index, axis=1),
            }
            context = dataclasses.replace(
                context,
                cache_index=index,
                key_positions=new["positions"],
                key_segment_ids=new["segment_ids"],
            )
        for i in range(len(self.config.groups)):
            name = f"group_{i}"
            layers = None if cache is None else cache["layers"][name]
            x, layers = getattr(self, name)(x, context, layers, remat)
            if new is not None:
                new["layers"][name] = layers
        return self.final_norm(x), new

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden [B, T, D] to logits [B, T, V], float32."""
        if self.config.tied:
            return self.embed.attend(hidden)
        kernel = self.head.weights(hidden.dtype)
        return jnp.einsum("btd,dv->btv", hidden, kernel, preferred_element_type=jnp.float32)
