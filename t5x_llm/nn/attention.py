"""Self-attention: multi-head, grouped-query (arXiv 2305.13245) and multi-query (1911.02150)."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.nn.adapters.virtual import PrefixKeys
from t5x_llm.nn.cache import CachedLayer, TokenCache
from t5x_llm.nn.dense import Dense
from t5x_llm.nn.kernels import Bias, attend, keep
from t5x_llm.nn.layer import Aux, Cache, Context, LayerConfig
from t5x_llm.nn.norm import Norm, NormConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.positions import AlibiConfig, RotaryConfig, alibi_bias, rotate
from t5x_llm.parallel import constrain

if TYPE_CHECKING:
    from jaxtyping import Array, Float

KEYS = ("batch", "length", "kv_heads", "head")
QUERIES = ("batch", "length", "heads", "head")


@dataclasses.dataclass(frozen=True)
class QKNormConfig:
    """A norm on queries and one on keys, before rotation (arXiv 2302.05442, section 2).

    Attributes:
      norm: which.
      scope: 'head' normalises each head with one scale for all (Qwen3); 'heads' gives each head a
        scale of its own (StableLM); 'all' normalises all heads together (OLMo 2).
    """

    norm: NormConfig
    scope: str

    def __post_init__(self) -> None:
        check_choice("QKNormConfig.scope", self.scope, ("head", "heads", "all"))


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """A self-attention layer.

    Attributes:
      n_heads: N query heads.
      n_kv_heads: K key/value heads; N for multi-head, 1 for multi-query.
      head_dim: H.
      rotary: rotation of queries and keys, or None.
      qkv_bias: biases on the query, key and value projections.
      out_bias: bias on the output projection.
      causal: tokens see only what came before them.
      window: they see the last ``window`` tokens only, themselves included; None for all.
      scale: factor on the logits; None means 1/sqrt(H).
      softcap: logits become softcap * tanh(logits / softcap), or None.
      alibi: linear biases by distance, or None.
      qk_norm: norm of queries and keys, or None.
      qkv_clip: queries, keys and values are clipped to +- this, or None (MPT, DBRX, OLMo).
      qk_filter: config of a layer that filters the input of queries and keys (Yuan 2.0, arXiv
        2311.15786), or None.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    rotary: RotaryConfig | None
    qkv_bias: bool
    out_bias: bool
    causal: bool
    window: int | None
    scale: float | None
    softcap: float | None
    alibi: AlibiConfig | None
    qk_norm: QKNormConfig | None
    qkv_clip: float | None
    qk_filter: LayerConfig | None

    part: ClassVar[str] = "attention"

    def __post_init__(self) -> None:
        for name in ("n_heads", "n_kv_heads", "head_dim"):
            check_number(f"AttentionConfig.{name}", getattr(self, name), low=1, integer=True)
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                "AttentionConfig.n_kv_heads",
                self.n_kv_heads,
                f"a divisor of n_heads = {self.n_heads}",
                "Every key/value head serves the same number of query heads.",
            )
        if self.rotary is not None and self.rotary.dim > self.head_dim:
            raise ConfigError(
                "RotaryConfig.dim", self.rotary.dim, f"at most head_dim = {self.head_dim}"
            )
        if self.window is not None:
            check_number("AttentionConfig.window", self.window, low=1, integer=True)
            if not self.causal:
                raise ConfigError("AttentionConfig.window", self.window, "None unless causal")
        for name in ("scale", "softcap", "qkv_clip"):
            if getattr(self, name) is not None:
                check_number(f"AttentionConfig.{name}", getattr(self, name), above=0)

    @property
    def width(self) -> int:
        """N * H: what each pair of tokens costs in FLOPs is proportional to it."""
        return self.n_heads * self.head_dim

    def make(self, d_model: int, init: InitConfig, rngs: nnx.Rngs) -> Attention:
        """The layer."""
        return Attention(self, d_model, init, rngs)


class QKNorm(nnx.Module):
    """Normalises heads [B, T, N, H]."""

    def __init__(self, config: QKNormConfig, heads: int, head_dim: int):
        self.config = config
        if config.scope == "all":
            self.norm = Norm(config.norm, heads * head_dim)
        else:
            self.norm = Norm(config.norm, head_dim, heads if config.scope == "heads" else None)

    def __call__(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
        if self.config.scope == "all":
            return self.norm(x.reshape(*x.shape[:2], -1)).reshape(x.shape)
        return self.norm(x)


class Attention(CachedLayer):
    """[B, T, D] -> [B, T, D] within a segment."""

    adapter: PrefixKeys | None = None

    def __init__(self, config: AttentionConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs):
        self.config = config
        n, k, h = config.n_heads, config.n_kv_heads, config.head_dim
        std = init.kernel(d_model) * init.query_scale
        kwargs: dict[str, Any] = dict(std=std, bias=config.qkv_bias, rngs=rngs)
        self.query = Dense((d_model,), (n, h), ("embed",), ("heads", "head"), **kwargs)
        kwargs["std"] = init.kernel(d_model)
        self.key = Dense((d_model,), (k, h), ("embed",), ("kv_heads", "head"), **kwargs)
        kwargs["std"] = init.kernel(d_model, branch=True)
        self.value = Dense((d_model,), (k, h), ("embed",), ("kv_heads", "head"), **kwargs)
        self.out = Dense(
            (n, h),
            (d_model,),
            ("heads", "head"),
            ("embed",),
            std=init.kernel(n * h, residual=True),
            bias=config.out_bias,
            rngs=rngs,
        )
        if config.qk_norm is not None:
            self.query_norm = QKNorm(config.qk_norm, n, h)
            self.key_norm = QKNorm(config.qk_norm, k, h)
        if config.qk_filter is not None:
            self.qk_filter = config.qk_filter.make(d_model, init, rngs)

    def cache_kinds(self) -> dict[str, Any]:
        """Returns keys and values [B, S, K, H], and the filter's state if there is one."""
        heads = TokenCache((self.config.n_kv_heads, self.config.head_dim), KEYS[2:])
        kinds: dict[str, Any] = {"key": heads, "value": heads}
        if self.config.qk_filter is not None:
            kinds["filter"] = self.qk_filter.cache_kinds()
        return kinds

    def _project(
        self, x: jax.Array, context: Context, cache: Cache | None
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Cache]:
        """Queries, keys and values, ready to attend; and the filter's new state."""
        config, state, filtered = self.config, {}, x
        if config.qk_filter is not None:
            before = None if cache is None else cache["filter"]
            filtered, after, _ = self.qk_filter(x, context, before)
            state = {} if cache is None else {"filter": after}
        q, k, v = self.query(filtered), self.key(filtered), self.value(x)
        if config.qkv_clip is not None:
            q, k, v = (jnp.clip(a, -config.qkv_clip, config.qkv_clip) for a in (q, k, v))
        if config.qk_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if config.rotary is not None:
            tables = context.rotary[config.rotary]
            q, k = rotate(q, tables, config.rotary), rotate(k, tables, config.rotary)
        q = keep(constrain(q, QUERIES), "query")
        k = keep(constrain(k, KEYS), "key")
        return (q, k, keep(constrain(v, KEYS), "value")), state

    def bias(self, context: Context) -> Bias | None:
        """Returns what is added to the logits by position."""
        if self.config.alibi is None:
            return None
        return functools.partial(alibi_bias, self.config.alibi, n_heads=self.config.n_heads)

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Cache | None, Aux]:
        config = self.config
        (q, k, v), state = self._project(x, context, cache)
        if cache is not None:
            kinds, rows = self.cache_kinds(), context.rows
            cache = {
                "key": kinds["key"].write(cache["key"], k, rows),
                "value": kinds["value"].write(cache["value"], v, rows),
                **state,
            }
            k, v = (kinds[name].read(cache[name], rows) for name in ("key", "value"))
        seen = context.seen()
        if self.adapter is not None:
            k, v, seen = self.adapter.before(k, v, context)
        y = attend(
            q,
            k,
            v,
            **seen,
            causal=config.causal,
            window=config.window,
            softcap=config.softcap,
            scale=config.scale,
            bias=self.bias(context),
        )
        return keep(self.out(constrain(y, QUERIES)), "attention_out"), cache, {}
