"""The generic decoder: embedding, groups of blocks, a final norm and a head."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import check_number
from t5x_llm.models.decoding import PREFIX, empty_stack, extend
from t5x_llm.models.head import Head, head_logits
from t5x_llm.models.pipelined import planned, run_pipeline
from t5x_llm.nn.adapters.virtual import VirtualTokens
from t5x_llm.nn.block import INPUT, RESIDUAL, Group, GroupConfig, join_aux
from t5x_llm.nn.dense import Dense, Embedding
from t5x_llm.nn.layer import VIRTUAL, Context, starts_of
from t5x_llm.nn.norm import Norm, NormConfig
from t5x_llm.nn.param import InitConfig, constant
from t5x_llm.nn.positions import RotaryConfig, rotary_tables, sequence_lengths
from t5x_llm.nn.relative import RelativeAttentionConfig, RelativeBias, RelativeBiasConfig
from t5x_llm.parallel import constrain

_NEVER = -1e30  # a logit; an infinity in padding gives NaN once XLA has cut it


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only language model.

    Attributes:
      kind: 'decoder', 'encoder' or 'encoder_decoder'.
      vocab_size: V.
      d_model: D.
      groups: the layers.
      final_norm: norm before the head, or None (post-norm models).
      learned_positions: rows of a learned position table, or None (rotary, ALiBi or none).
      tied: the head is the embedding table.
      init: how fresh weights are drawn.
      position_offset: rows at the start of the position table that no token uses (OPT: 2).
      embed_dim: width of the embedding table where it is not D; projected to it (OPT 350M).
      embed_scale: factor on embeddings (Gemma: sqrt(D)), or None.
      embed_norm: norm right after the embedding (BLOOM, RWKV), or None.
      embed_gradient: share of the gradient that reaches the embedding table by way of the input
        (GLM-130B, arXiv 2210.02414, section 3.3); 1 for all of it.
      neftune: alpha of NEFTune's noise on embeddings while training (arXiv 2310.05914), or None.
      head_bias: a bias on the logits.
      logit_scale: factor on the logits (PaLM: 1/sqrt(D)), or None.
      logit_softcap: logits become softcap * tanh(logits / softcap), or None.
      normalized_head: rows of the head are scaled to unit length (Baichuan 2).
    """

    kind: ClassVar[str] = "decoder"
    stageable: ClassVar[bool] = True  # its layers may be a pipeline

    vocab_size: int
    d_model: int
    groups: tuple[GroupConfig, ...]
    final_norm: NormConfig | None
    learned_positions: int | None
    tied: bool
    init: InitConfig
    position_offset: int = 0
    embed_dim: int | None = None
    embed_scale: float | None = None
    embed_norm: NormConfig | None = None
    embed_gradient: float = 1.0
    neftune: float | None = None
    head_bias: bool = False
    logit_scale: float | None = None
    logit_softcap: float | None = None
    normalized_head: bool = False

    def __post_init__(self) -> None:
        check_number("DecoderConfig.vocab_size", self.vocab_size, low=2, integer=True)
        check_number("DecoderConfig.d_model", self.d_model, low=1, integer=True)
        for name in ("learned_positions", "embed_dim"):
            if getattr(self, name) is not None:
                check_number(f"DecoderConfig.{name}", getattr(self, name), low=1, integer=True)
        for name in ("embed_scale", "logit_scale", "logit_softcap", "neftune"):
            if getattr(self, name) is not None:
                check_number(f"DecoderConfig.{name}", getattr(self, name), above=0)
        rows = 2**31 if self.learned_positions is not None else 0
        check_number(
            "DecoderConfig.position_offset", self.position_offset, low=0, high=rows, integer=True
        )
        check_number("DecoderConfig.embed_gradient", self.embed_gradient, low=0, high=1)

    @property
    def n_layers(self) -> int:
        """L."""
        return sum(group.n_layers for group in self.groups)

    @property
    def attention_width(self) -> int:
        """Query heads times head size, summed over the layers that have attention."""
        return self._sum("width")

    @property
    def state_size(self) -> int:
        """Elements of the states of recurrences, summed over layers."""
        return self._sum("state_size")

    def _sum(self, name: str) -> int:
        """The sum of a property of mixers, over the layers whose mixer has it."""
        return sum(
            getattr(block.mixer, name, 0) * group.repeat
            for group in self.groups
            for block in group.blocks
        )

    @property
    def rotaries(self) -> tuple[RotaryConfig, ...]:
        """The rotary configs of all layers, each once."""
        found = (getattr(b.mixer, "rotary", None) for g in self.groups for b in g.blocks)
        return tuple(dict.fromkeys(rotary for rotary in found if rotary is not None))

    def make(self, rngs: nnx.Rngs) -> Decoder:
        """The module."""
        return Decoder(self, rngs)


class Decoder(nnx.Module):
    """Tokens [B, T] to hidden states [B, T, D]; ``head`` says how those become logits.

    Positions are those of the text; with ``adapter`` its virtual tokens stand before them.
    """

    adapter: VirtualTokens | None = None

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        d, init = config.d_model, config.init
        width = config.embed_dim or d
        self.embed = Embedding(config.vocab_size, width, init.embed_std, rngs)
        if config.learned_positions is not None:
            rows = config.learned_positions + config.position_offset
            self.position_embed = Embedding(rows, d, init.embed_std, rngs, axis="positions")
        if config.embed_norm is not None:
            self.embed_norm = Norm(config.embed_norm, d)
        if width != d:
            kwargs: dict[str, Any] = dict(bias=False, rngs=rngs, exact=True)
            axes = ("rank",), ("embed",)
            self.embed_in = Dense((width,), (d,), *axes, std=init.kernel(width), **kwargs)
            self.embed_out = Dense((d,), (width,), *axes[::-1], std=init.kernel(d), **kwargs)
        make_groups(self, config.groups, d, init, rngs)
        if config.final_norm is not None:
            self.final_norm = Norm(config.final_norm, d)
        if not config.tied:
            self.head = Dense(
                (width,),
                (config.vocab_size,),
                ("embed",),
                ("vocab",),
                std=init.kernel(width),
                bias=False,
                rngs=rngs,
            )
        if config.head_bias:
            self.head_bias = constant((config.vocab_size,), 0.0, ("vocab",))

    def init_cache(
        self, batch: int, length: int, dtype: jnp.dtype, prefix: bool = False
    ) -> dict[str, Any]:
        """Returns an empty decoding cache for ``batch`` rows of up to ``length`` tokens each."""
        cache = empty_stack(self, self.config.groups, batch, length, dtype)
        return cache | ({"prefix": PREFIX.empty(batch, length, dtype)} if prefix else {})

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: dict[str, Any] | None,
        dtype: jnp.dtype,
        remat: str,
        *,
        prefix: jax.Array | None = None,
        block_positions: jax.Array | None = None,
        noise: jax.Array | None = None,
        embed_gradient: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, Any] | None, dict[str, jax.Array]]:
        """See ``Model.apply``; returns (hidden, cache, every layer's scalars)."""
        first: Any = 0 if cache is None else cache["index"]
        virtual, own = self.adapter, 0
        if virtual is not None:
            positions = positions + virtual.count
            if not virtual.leading:
                first = first + virtual.count
            elif cache is None:
                own, one = virtual.count, segment_ids[:, :1]
                positions = virtual.before(positions, jnp.arange(own))
                segment_ids = virtual.before(segment_ids, VIRTUAL if self.stands_alone else one)
                prefix = None if prefix is None else virtual.before(prefix, False)
                if block_positions is not None:
                    block_positions = virtual.before(block_positions, 0)
        x = self.embedded(tokens, positions, segment_ids, dtype, noise, embed_gradient)
        context = self.context(positions, segment_ids, prefix, block_positions, first, cache)
        hidden, cache, aux = self.layers(x, context, cache, remat)
        return (hidden[:, own:] if own else hidden), cache, aux

    @property
    def stands_alone(self) -> bool:
        """True if virtual tokens before the input know nothing of the text after them."""
        return self.config.kind == "decoder"

    def begin(self, cache: dict[str, Any], dtype: jnp.dtype) -> dict[str, Any]:
        """Returns an empty cache with the virtual tokens that stand before the input in it."""
        virtual = self.adapter
        if virtual is None or not virtual.leading:
            return cache
        rows = len(cache["index"])
        places = jnp.broadcast_to(jnp.arange(virtual.count, dtype=jnp.int32), (rows, virtual.count))
        segments = jnp.full_like(places, VIRTUAL)
        x = self.embedded(places[:, :0], places, segments, dtype)
        return self.layers(x, self.context(places, segments), cache, "none")[1] or cache

    def layers(
        self, x: jax.Array, context: Context, cache: dict[str, Any] | None, remat: str
    ) -> tuple[jax.Array, dict[str, Any] | None, dict[str, jax.Array]]:
        """Runs the layers: what the first one reads to what ``__call__`` returns."""
        if cache is None:
            if (staged := planned(self.config)) is not None:
                x, aux = run_pipeline(self.group_0, x, context, remat, *staged)
                return self.normed(x), None, aux
            x, _, aux = run_groups(self, self.config.groups, x, context, None, remat)
            return self.normed(x), None, aux
        context, new = extend(context, cache)
        groups = self.config.groups
        x, new["layers"], aux = run_groups(self, groups, x, context, cache["layers"], remat)
        return self.normed(x), new, aux

    def context(
        self,
        positions: jax.Array,
        segment_ids: jax.Array,
        prefix: jax.Array | None = None,
        block_positions: jax.Array | None = None,
        first: jax.Array | int = 0,
        cache: dict[str, Any] | None = None,
    ) -> Context:
        """Returns what the layers know of the tokens besides x, without a cache.

        Where rotations go by the length of the sequence, tokens in ``cache`` count with the call's;
        their keys keep the rotation that they were stored with.
        """
        rotaries, lengths = self.config.rotaries, None
        if any(rotary.by_length for rotary in rotaries):
            held = () if cache is None else (cache["positions"], cache["segment_ids"])
            lengths = sequence_lengths(positions, segment_ids, *held)
        rotary = {
            config: rotary_tables(config, positions, block_positions, lengths)
            for config in rotaries
        }
        if block_positions is not None:  # those do not tell the order of tokens
            first = first if isinstance(first, int) else first[:, None]
            positions = jnp.broadcast_to(first + jnp.arange(positions.shape[1]), positions.shape)
        starts, tables = starts_of(segment_ids), relative_tables(self, self.config.groups)
        context = Context(positions, segment_ids, starts, rotary, prefix, relative=tables)
        if (virtual := self.adapter) is None:
            return context
        common = virtual.count if virtual.leading and self.stands_alone else 0
        return dataclasses.replace(context, common=common, trunk=virtual.trunk())

    def normed(self, x: jax.Array) -> jax.Array:
        """The last layer's output [B, T, D] as the head takes it."""
        if self.config.final_norm is not None:
            x = self.final_norm(x)
        x = constrain(x, INPUT)
        if self.config.embed_dim not in (None, self.config.d_model):
            x = self.embed_out(x)
        return x

    def looked_up(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Rows of the embedding table: [B, T, width of the table]."""
        return self.embed(tokens, dtype)

    def embedded(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        dtype: jnp.dtype,
        noise: jax.Array | None = None,
        embed_gradient: jax.Array | None = None,
    ) -> jax.Array:
        """Returns what the first layer reads: [B, T, D]."""
        config = self.config
        x = self.looked_up(tokens, dtype)
        if self.adapter is not None and positions.shape[1] > tokens.shape[1]:
            x = self.adapter.before(x, self.adapter.rows())
        share = config.embed_gradient if embed_gradient is None else embed_gradient
        if embed_gradient is not None or config.embed_gradient != 1.0:
            share = jnp.asarray(share, dtype)
            x = share * x + (1 - share) * jax.lax.stop_gradient(x)
        if config.embed_dim not in (None, config.d_model):
            x = self.embed_in(x)
        if config.embed_scale is not None:
            x = x * jnp.asarray(config.embed_scale, dtype)
        if config.learned_positions is not None:
            x = x + self.position_embed(positions + config.position_offset, dtype)
        if config.embed_norm is not None:
            x = self.embed_norm(x)
        if config.neftune is not None and noise is not None:
            real = jnp.sum(segment_ids != 0, axis=1).astype(jnp.float32)
            size = config.neftune / jnp.sqrt(jnp.maximum(real, 1) * config.d_model)
            uniform = jax.random.uniform(noise, x.shape, jnp.float32, -1.0, 1.0)
            x = x + (uniform * size[:, None, None]).astype(dtype)
        return constrain(x, RESIDUAL)

    def output_head(self, dtype: jnp.dtype) -> Head:
        """Returns what turns hidden states into logits."""
        config = self.config
        if config.tied:
            # A soft cap would let the rows of padding in.
            kernel = self.embed.head_weights(dtype, padded=config.logit_softcap is None)
        else:
            kernel = self.head.head_weights(dtype)
        if config.normalized_head:
            wide = kernel.astype(jnp.float32)
            squares = jnp.sum(wide * wide, axis=1 if config.tied else 0, keepdims=True)
            kernel = (wide * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))).astype(dtype)
        bias = self.head_bias[...] if config.head_bias else None
        more = kernel.shape[0 if config.tied else 1] - config.vocab_size
        if more:
            bias = jnp.zeros(config.vocab_size) if bias is None else bias
            bias = jnp.pad(bias, (0, more), constant_values=_NEVER)
        return Head(kernel, config.tied, bias, config.logit_scale, config.logit_softcap)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden [B, T, D] to logits [B, T, V], float32."""
        logits = head_logits(self.output_head(hidden.dtype), hidden)
        return logits[..., : self.config.vocab_size]


def _relatives(groups: tuple[GroupConfig, ...]) -> tuple[RelativeBiasConfig, ...]:
    """The relative biases that layers share, each once."""
    mixers = (b.mixer for g in groups for b in g.blocks)
    found = (m.relative for m in mixers if isinstance(m, RelativeAttentionConfig))
    return tuple(dict.fromkeys(found))


def make_groups(
    module: nnx.Module,
    groups: tuple[GroupConfig, ...],
    d_model: int,
    init: InitConfig,
    rngs: nnx.Rngs,
) -> None:
    """Gives ``module`` the layers, as ``group_0``, ..., and what they share, ``relative_0``, ..."""
    for i, group in enumerate(groups):
        setattr(module, f"group_{i}", Group(group, d_model, init, rngs))
    for i, relative in enumerate(_relatives(groups)):
        setattr(module, f"relative_{i}", RelativeBias(relative, init.kernel(d_model), rngs))


def relative_tables(module: nnx.Module, groups: tuple[GroupConfig, ...]) -> dict[Any, jax.Array]:
    """``Context.relative`` of the layers that ``make_groups`` made."""
    found = enumerate(_relatives(groups))
    return {config: getattr(module, f"relative_{i}").bias[...] for i, config in found}


def run_groups(
    module: nnx.Module,
    groups: tuple[GroupConfig, ...],
    x: jax.Array,
    context: Context,
    cache: dict[str, Any] | None,
    remat: str,
) -> tuple[jax.Array, dict[str, Any], dict[str, jax.Array]]:
    """The layers that ``make_groups`` made: x, their caches and their scalars."""
    new, auxes = {}, []
    for i in range(len(groups)):
        name = f"group_{i}"
        layers = None if cache is None else cache[name]
        x, new[name], aux = getattr(module, name)(x, context, layers, remat)
        auxes.append(aux)
    return x, new, join_aux(auxes)
