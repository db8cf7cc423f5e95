"""The generic encoder-decoder: a decoder whose layers also see what an encoder made."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import check_number
from t5x_llm.models.decoder import (
    Decoder,
    DecoderConfig,
    make_groups,
    relative_tables,
    run_groups,
)
from t5x_llm.nn.block import GroupConfig
from t5x_llm.nn.layer import Context, starts_of
from t5x_llm.nn.norm import Norm
from t5x_llm.nn.positions import rotary_tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(DecoderConfig):
    """An encoder-decoder; both sides embed alike, from one table.

    The fields of ``DecoderConfig`` are the decoder's; its ``final_norm`` stands at the end of
    either side. Blocks with cross attention are ``nn.cross_attention.CrossBlockConfig``.

    Attributes:
      encoder: the encoder's layers.
      start: id of the token that the decoder reads first when it generates.
    """

    kind: ClassVar[str] = "encoder_decoder"
    stageable: ClassVar[bool] = False

    encoder: tuple[GroupConfig, ...]
    start: int

    def __post_init__(self) -> None:
        super().__post_init__()
        high = self.vocab_size - 1
        check_number("EncoderDecoderConfig.start", self.start, low=0, high=high, integer=True)

    def make(self, rngs: nnx.Rngs) -> EncoderDecoder:
        """The module."""
        return EncoderDecoder(self, rngs)


class EncoderStack(nnx.Module):
    """Embedded tokens [B, S, D] to [B, S, D]."""

    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs):
        self.config = config
        make_groups(self, config.encoder, config.d_model, config.init, rngs)
        if config.final_norm is not None:
            self.final_norm = Norm(config.final_norm, config.d_model)

    def __call__(
        self, x: jax.Array, positions: jax.Array, segment_ids: jax.Array, remat: str
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns (encoded, every layer's scalars)."""
        groups = self.config.encoder
        mixers = (getattr(b.mixer, "rotary", None) for g in groups for b in g.blocks)
        rotary = {c: rotary_tables(c, positions) for c in mixers if c is not None}
        starts, tables = starts_of(segment_ids), relative_tables(self, groups)
        context = Context(positions, segment_ids, starts, rotary, relative=tables)
        x, _, aux = run_groups(self, groups, x, context, None, remat)
        return (x if self.config.final_norm is None else self.final_norm(x)), aux


class EncoderDecoder(Decoder):
    """Encoder tokens [B, S] and tokens [B, T] to hidden states [B, T, D].

    Tokens of the decoder see the encoder's of the same segment number.
    """

    config: EncoderDecoderConfig

    def __init__(self, config: EncoderDecoderConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.encoder = EncoderStack(config, rngs)

    def __call__(  # type: ignore[override]
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: dict[str, Any] | None,
        dtype: jnp.dtype,
        remat: str,
        *,
        encoder_tokens: jax.Array | None = None,
        encoder_positions: jax.Array | None = None,
        encoder_segment_ids: jax.Array | None = None,
        noise: jax.Array | None = None,
        embed_gradient: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, Any] | None, dict[str, jax.Array]]:
        """See ``Model.apply``; returns (hidden, cache, every layer's scalars).

        The first call with a cache has ``encoder_tokens`` [B, S], later ones have none: the
        encoder's keys and values are in the cache then. ``encoder_positions`` and
        ``encoder_segment_ids`` are by default those of one document. Virtual tokens stand before
        the encoder's, or are a prefix of the decoder's layers.
        """
        aux: dict[str, jax.Array] = {}
        encoded, virtual = None, self.adapter
        if encoder_tokens is not None:
            if encoder_segment_ids is None:
                encoder_segment_ids = jnp.ones_like(encoder_tokens)
            if encoder_positions is None:
                count = jnp.arange(encoder_tokens.shape[1])
                encoder_positions = jnp.broadcast_to(count, encoder_tokens.shape)
            if virtual is not None and virtual.leading:
                encoder_positions = encoder_positions + virtual.count
                encoder_positions = virtual.before(encoder_positions, jnp.arange(virtual.count))
                one = encoder_segment_ids[:, :1]
                encoder_segment_ids = virtual.before(encoder_segment_ids, one)
            place = (encoder_positions, encoder_segment_ids)
            other = None if noise is None else jax.random.fold_in(noise, 1)
            x = self.embedded(encoder_tokens, *place, dtype, other, embed_gradient)
            encoded, aux = self.encoder(x, *place, remat)
        elif cache is None or "encoder_segment_ids" not in cache:
            raise ValueError("an encoder-decoder needs encoder_tokens, or a cache that had them")
        else:
            encoder_segment_ids = cache["encoder_segment_ids"]
        if virtual is not None and not virtual.leading:
            positions = positions + virtual.count
        context = dataclasses.replace(
            self.context(positions, segment_ids),
            encoded=encoded,
            encoder_segment_ids=encoder_segment_ids,
        )
        x = self.embedded(tokens, positions, segment_ids, dtype, noise, embed_gradient)
        x, cache, more = self.layers(x, context, cache, remat)
        if cache is not None:
            cache["encoder_segment_ids"] = encoder_segment_ids
        both = aux.keys() & more.keys()
        more |= {name: jnp.concatenate([aux[name], more[name]]) for name in both}
        return x, cache, aux | more
