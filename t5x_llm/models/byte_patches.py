"""A decoder over bytes in two levels (bGPT, arXiv 2402.19155, section 3).

One stack reads whole patches of P bytes and makes a feature of each; another predicts the bytes of
a patch, one by one, from the feature of the patch before it and the bytes before them.

A segment starts a new patch, wherever in the row that is; its first patch has no feature before
it. Each token takes one place of the byte level: the last byte of a patch stands for the patch's
feature there (it predicts the first byte of the next), any other for itself. So both levels are
plain stacks over packed rows: at the byte level, the segments are the patches.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.models.decoder import make_groups, run_groups
from t5x_llm.models.decoding import empty_stack, extend
from t5x_llm.models.head import Head, head_logits
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.block import RESIDUAL, GroupConfig, join_aux
from t5x_llm.nn.cache import CacheRows, RecentCache, StateCache, at_end, valid_lengths
from t5x_llm.nn.dense import Dense, Embedding
from t5x_llm.nn.layer import Context, starts_of
from t5x_llm.nn.norm import Norm, NormConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.positions import rotary_tables
from t5x_llm.parallel import constrain


@dataclasses.dataclass(frozen=True)
class BytePatchesConfig:
    """A model of bytes by patches.

    Attributes:
      vocab_size: V, the 256 bytes and what else there is.
      d_model: D, of both levels.
      patch_size: P.
      patches: layers over patches; their mixers are attention.
      groups: layers over the bytes of one patch; their mixers are attention.
      final_norm: at the end of either level.
      max_patches: rows of the learned table of patches' positions.
      init: how fresh weights are drawn.
    """

    kind: ClassVar[str] = "decoder"
    tied: ClassVar[bool] = True
    state_size: ClassVar[int] = 0  # no recurrences

    vocab_size: int
    d_model: int
    patch_size: int
    patches: tuple[GroupConfig, ...]
    groups: tuple[GroupConfig, ...]
    final_norm: NormConfig
    max_patches: int
    init: InitConfig

    def __post_init__(self) -> None:
        for name in ("vocab_size", "patch_size"):
            check_number(f"BytePatchesConfig.{name}", getattr(self, name), low=2, integer=True)
        for name in ("d_model", "max_patches"):
            check_number(f"BytePatchesConfig.{name}", getattr(self, name), low=1, integer=True)
        for name in ("patches", "groups"):
            for mixer in (b.mixer for group in getattr(self, name) for b in group.blocks):
                if not isinstance(mixer, AttentionConfig):
                    raise ConfigError(f"BytePatchesConfig.{name}", mixer, "layers with attention")

    @property
    def learned_positions(self) -> int:
        """The longest sequence, in bytes."""
        return self.max_patches * self.patch_size

    @property
    def n_layers(self) -> int:
        """Layers of both levels."""
        return sum(group.n_layers for group in (*self.patches, *self.groups))

    @property
    def attention_width(self) -> int:
        """Width as of a decoder: the patch level has 1/P of the queries and of the keys."""
        width = sum(getattr(b.mixer, "width", 0) * g.repeat for g in self.patches for b in g.blocks)
        return round(width / self.patch_size**2)

    @property
    def idle_parts(self) -> dict[str, float]:
        """Top-level parts of the parameters to the share of tokens that do not meet them."""
        return {"patch_level": 1 - 1 / self.patch_size}

    @property
    def windowed(self) -> tuple[GroupConfig, ...]:
        """``groups`` told that nothing is further than a patch, so that kernels skip the rest."""

        def block(b: Any) -> Any:
            window = min(b.mixer.window or self.patch_size, self.patch_size)
            if not b.mixer.causal:
                return b
            return dataclasses.replace(b, mixer=dataclasses.replace(b.mixer, window=window))

        return tuple(
            dataclasses.replace(group, blocks=tuple(map(block, group.blocks)))
            for group in self.groups
        )

    def make(self, rngs: nnx.Rngs) -> BytePatches:
        """The module."""
        return BytePatches(self, rngs)


def _context(
    groups: tuple[GroupConfig, ...], positions: jax.Array, segment_ids: jax.Array
) -> Context:
    found = (getattr(b.mixer, "rotary", None) for group in groups for b in group.blocks)
    rotary = {config: rotary_tables(config, positions) for config in found if config is not None}
    return Context(positions, segment_ids, starts_of(segment_ids), rotary)


def _run(
    module: nnx.Module,
    groups: tuple[GroupConfig, ...],
    x: jax.Array,
    context: Context,
    cache: dict[str, Any] | None,
    remat: str,
) -> tuple[jax.Array, dict[str, Any] | None, dict[str, jax.Array]]:
    if cache is None:
        x, _, aux = run_groups(module, groups, x, context, None, remat)
        return x, None, aux
    context, new = extend(context, cache)
    x, new["layers"], aux = run_groups(module, groups, x, context, cache["layers"], remat)
    return x, new, aux


class PatchLevel(nnx.Module):
    """Patches [B, M, P] to features [B, M, D]."""

    def __init__(self, config: BytePatchesConfig, rngs: nnx.Rngs):
        self.config = config
        d, init, size = config.d_model, config.init, (config.patch_size, config.vocab_size)
        axes, std = (("positions", "vocab"), ("embed",)), init.kernel(config.patch_size)
        self.project = Dense(size, (d,), *axes, std=std, bias=True, rngs=rngs, exact=True)
        rows = config.max_patches
        self.position_embed = Embedding(rows, d, init.embed_std, rngs, axis="positions")
        make_groups(self, config.patches, d, init, rngs)
        self.final_norm = Norm(config.final_norm, d)

    def __call__(
        self,
        patches: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: dict[str, Any] | None,
        dtype: jnp.dtype,
        remat: str,
    ) -> tuple[jax.Array, dict[str, Any] | None, dict[str, jax.Array]]:
        """(features, cache, every layer's scalars)."""
        x = self.project(jax.nn.one_hot(patches, self.config.vocab_size, dtype=dtype))
        x = constrain(x + self.position_embed(positions, dtype), RESIDUAL)
        groups = self.config.patches
        context = _context(groups, positions, segment_ids)
        x, cache, aux = _run(self, groups, x, context, cache, remat)
        return self.final_norm(x), cache, aux


class BytePatches(nnx.Module):
    """Bytes [B, T] to hidden states [B, T, D], each of which predicts the next byte."""

    def __init__(self, config: BytePatchesConfig, rngs: nnx.Rngs):
        self.config = config
        d, std = config.d_model, config.init.embed_std
        self.embed = Embedding(config.vocab_size, d, std, rngs)
        # One row more than there are places, as released: its last predicts nothing.
        rows = config.patch_size + 1
        self.position_embed = Embedding(rows, d, std, rngs, axis="positions")
        make_groups(self, config.windowed, d, config.init, rngs)
        self.final_norm = Norm(config.final_norm, d)
        self.patch_level = PatchLevel(config, rngs)

    def init_cache(self, batch: int, length: int, dtype: jnp.dtype) -> dict[str, Any]:
        """Returns an empty decoding cache for ``batch`` rows of up to ``length`` bytes each.

        ``recent`` are the bytes of a patch that later calls may end; ``segment`` and ``patch`` are
        the numbers of the last byte's.
        """
        config, patches = self.config, length // self.config.patch_size + 1
        return {
            "index": jnp.zeros((batch,), jnp.int32),
            "recent": self.recent_kind.empty(batch, length, dtype),
            "segment": StateCache(dtype=jnp.int32, fill=-1).empty(batch, length, dtype),
            "patch": StateCache(dtype=jnp.int32).empty(batch, length, dtype),
            "bytes": empty_stack(self, config.groups, batch, length, dtype),
            "patches": empty_stack(self.patch_level, config.patches, batch, patches, dtype),
        }

    @property
    def recent_kind(self) -> RecentCache:
        """The last bytes, as many as a patch has."""
        return RecentCache(self.config.patch_size, dtype=jnp.int32)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: dict[str, Any] | None,
        dtype: jnp.dtype,
        remat: str,
        *,
        noise: jax.Array | None = None,
        embed_gradient: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, Any] | None, dict[str, jax.Array]]:
        """See ``Model.apply``; returns (hidden, cache, every layer's scalars).

        ``noise`` is for models with NEFTune, which this is not.
        """
        place = (positions + 1) % self.config.patch_size
        ends = (place == 0) & (segment_ids != 0)
        starts = starts_of(segment_ids, None if cache is None else cache["segment"])
        patch = jnp.cumsum(starts | (place == 0), axis=1, dtype=jnp.int32)
        if cache is not None:
            patch = patch + cache["patch"][:, None]
        features, patches, aux = self._features(
            tokens, positions, segment_ids, ends, cache, dtype, remat
        )
        own = self.embed(tokens, dtype)
        if embed_gradient is not None:
            share = jnp.asarray(embed_gradient, dtype)
            own = share * own + (1 - share) * jax.lax.stop_gradient(own)
        x = jnp.where(ends[..., None], features, own) + self.position_embed(place, dtype)
        groups = self.config.windowed
        context = _context(groups, place, jnp.where(segment_ids == 0, 0, patch))
        before = None if cache is None else cache["bytes"]
        x, after, more = _run(self, groups, constrain(x, RESIDUAL), context, before, remat)
        if cache is not None:
            rows = CacheRows(cache["index"], valid_lengths(segment_ids))
            cache = {
                "index": rows.index + rows.lengths,
                "recent": self.recent_kind.write(cache["recent"], tokens, rows),
                "segment": at_end(segment_ids, rows, cache["segment"]),
                "patch": at_end(patch, rows, cache["patch"]),
                "bytes": after,
                "patches": patches,
            }
        return self.final_norm(x), cache, join_aux([aux, more])

    def _features(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        ends: jax.Array,
        cache: dict[str, Any] | None,
        dtype: jnp.dtype,
        remat: str,
    ) -> tuple[jax.Array, dict[str, Any] | None, dict[str, jax.Array]]:
        """Features of the patches that ``ends`` [B, T] end, where they end: [B, T, D]."""
        size, length = self.config.patch_size, tokens.shape[1]
        # Whole patches do not overlap; only the first may have begun before this call.
        count = length // size + (cache is not None)
        last = jnp.argsort(~ends, axis=1, stable=True)[:, :count]
        real = jnp.take_along_axis(ends, last, axis=1)
        none = jnp.zeros((len(tokens), size), tokens.dtype)
        recent = none if cache is None else cache["recent"]
        reach = last[:, :, None] + 1 + jnp.arange(size)
        row = jnp.concatenate([recent, tokens], axis=1)
        patches = jnp.take_along_axis(row[:, None], reach, axis=2)
        number, segment = (
            jnp.where(real, jnp.take_along_axis(x, last, axis=1), 0)
            for x in ((positions + 1) // size - 1, segment_ids)
        )

        def run(cache: dict[str, Any] | None) -> Any:
            return self.patch_level(patches, number, segment, cache, dtype, remat)

        if count == 0:
            return jnp.zeros((*tokens.shape, self.config.d_model), dtype), None, {}
        if cache is None:
            features, after, aux = run(None)
        else:  # most single bytes end no patch
            made = jax.eval_shape(run, cache["patches"])
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (made[0], made[2]))
            features, after, aux = jax.lax.cond(
                jnp.any(ends), run, lambda old: (zeros[0], old, zeros[1]), cache["patches"]
            )
        index = jnp.maximum(jnp.cumsum(ends, axis=1) - 1, 0)
        return jnp.take_along_axis(features, index[..., None], axis=1), after, aux

    def output_head(self, dtype: jnp.dtype) -> Head:
        """Returns what turns hidden states into logits."""
        return Head(self.embed.head_weights(dtype, padded=False), True, None, None, None)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden [B, T, D] to logits [B, T, V], float32."""
        return head_logits(self.output_head(hidden.dtype), hidden)
