"""Multi-head latent attention of DeepSeek-V2 (arXiv 2405.04434, section 2.1)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.nn.cache import CachedLayer, TokenCache
from t5x_llm.nn.dense import Dense
from t5x_llm.nn.kernels import attend, keep
from t5x_llm.nn.layer import Aux, Cache, Context
from t5x_llm.nn.norm import Norm, NormConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.positions import RotaryConfig, rotate
from t5x_llm.parallel import constrain

if TYPE_CHECKING:
    from jaxtyping import Array, Float

HEADS = ("batch", "length", "heads", "head")


@dataclasses.dataclass(frozen=True)
class LatentAttentionConfig:
    """Attention whose keys and values are made from one small vector a token.

    A head's query and key are ``nope_dim`` channels without position, then ``rotary.dim`` rotated
    ones; the rotated part of the key is one for all heads.

    Attributes:
      n_heads: N.
      q_rank: width of the compressed queries, or None where they are not compressed.
      kv_rank: width of the compressed keys and values.
      nope_dim: channels of a head's query and key that are not rotated.
      value_dim: head size of the values.
      rotary: rotation of the rest; its ``dim`` is their number.
      norm: of the compressed vectors.
      bias: biases on the compressions and on the output projection.
      scale: factor on the logits (with YaRN, its squared mscale included, as DeepSeek does); None
        means 1/sqrt(nope_dim + rotary.dim).
    """

    n_heads: int
    q_rank: int | None
    kv_rank: int
    nope_dim: int
    value_dim: int
    rotary: RotaryConfig
    norm: NormConfig
    bias: bool
    scale: float | None

    part: ClassVar[str] = "attention"

    def __post_init__(self) -> None:
        for name in ("n_heads", "kv_rank", "nope_dim", "value_dim"):
            field = f"LatentAttentionConfig.{name}"
            check_number(field, getattr(self, name), low=1, integer=True)
        if self.q_rank is not None:
            check_number("LatentAttentionConfig.q_rank", self.q_rank, low=1, integer=True)
        if self.scale is not None:
            check_number("LatentAttentionConfig.scale", self.scale, above=0)
        if self.rotary is None:
            raise ConfigError("LatentAttentionConfig.rotary", None, "a RotaryConfig")

    @property
    def head_dim(self) -> int:
        """Channels of a head's query and key."""
        return self.nope_dim + self.rotary.dim

    @property
    def width(self) -> int:
        """N * mean of head sizes: what each pair of tokens costs in FLOPs is proportional to it."""
        return self.n_heads * (self.head_dim + self.value_dim) // 2

    def absorbs(self, queries: int) -> bool:
        """Returns whether so many new tokens cost less against compressed keys than expanded."""
        per_pair = 2 * self.kv_rank + self.rotary.dim - self.head_dim - self.value_dim
        return queries * per_pair < self.kv_rank * (self.nope_dim + self.value_dim)

    def make(self, d_model: int, init: InitConfig, rngs: nnx.Rngs) -> LatentAttention:
        """The layer."""
        return LatentAttention(self, d_model, init, rngs)


class LatentAttention(CachedLayer):
    """[B, T, D] -> [B, T, D] within a segment.

    Parameters: ``query`` [D, N, H], or ``query_down`` [D, q_rank], ``query_norm`` and ``query_up``
    [q_rank, N, H]; ``kv_down`` [D, kv_rank], ``key_rotary`` [D, rotary.dim], ``kv_norm``;
    ``key_up`` [kv_rank, N, nope_dim], ``value_up`` [kv_rank, N, value_dim]; ``out``
    [N, value_dim, D].
    """

    def __init__(
        self, config: LatentAttentionConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs
    ):
        self.config = config
        n = config.n_heads

        def down(width: int) -> Dense:
            return Dense(
                (d_model,),
                (width,),
                ("embed",),
                ("rank",),
                std=init.kernel(d_model),
                bias=config.bias,
                rngs=rngs,
            )

        def up(rank: int, width: int, axis: str = "rank", branch: bool = False) -> Dense:
            std = init.kernel(rank, branch=branch)
            out: dict[str, Any] = dict(std=std, bias=False, rngs=rngs)
            return Dense((rank,), (n, width), (axis,), ("heads", "head"), **out)

        if config.q_rank is None:
            self.query = up(d_model, config.head_dim, "embed")
        else:
            self.query_down = down(config.q_rank)
            self.query_norm = Norm(config.norm, config.q_rank)
            self.query_up = up(config.q_rank, config.head_dim)
        self.kv_down = down(config.kv_rank)
        self.key_rotary = down(config.rotary.dim)
        self.kv_norm = Norm(config.norm, config.kv_rank)
        self.key_up = up(config.kv_rank, config.nope_dim)
        self.value_up = up(config.kv_rank, config.value_dim, branch=True)
        self.out = Dense(
            (n, config.value_dim),
            (d_model,),
            ("heads", "head"),
            ("embed",),
            std=init.kernel(n * config.value_dim, residual=True),
            bias=config.bias,
            rngs=rngs,
        )

    def cache_kinds(self) -> dict[str, Any]:
        """Returns compressed vectors [B, S, kv_rank] and rotated keys [B, S, rotary.dim]."""
        config = self.config
        return {
            "latent": TokenCache((config.kv_rank,), ("rank",)),
            "key": TokenCache((config.rotary.dim,), ("rank",)),
        }

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Cache | None, Aux]:
        config = self.config
        tables = context.rotary[config.rotary]
        if config.q_rank is None:
            q = self.query(x)
        else:
            q = self.query_up(self.query_norm(self.query_down(x)))
        plain, turned = jnp.split(q, [config.nope_dim], axis=-1)
        q = jnp.concatenate([plain, rotate(turned, tables, config.rotary)], axis=-1)
        latent = self.kv_norm(self.kv_down(x))
        turned = rotate(self.key_rotary(x)[:, :, None], tables, config.rotary)[:, :, 0]
        if cache is not None:
            kinds, rows = self.cache_kinds(), context.rows
            cache = self.write_cache(cache, {"latent": latent, "key": turned}, rows)
            assert cache is not None
            latent, turned = (kinds[name].read(cache[name], rows) for name in ("latent", "key"))
        scale = config.head_dim**-0.5 if config.scale is None else config.scale
        segments = context.seen() | {"scale": scale}
        q = keep(constrain(q, HEADS), "query")
        absorb = cache is not None and config.absorbs(x.shape[1])
        attention = self._absorbed if absorb else self._expanded
        y = attention(q, latent, turned, segments)
        return keep(self.out(constrain(y, HEADS)), "attention_out"), cache, {}

    def _expanded(
        self, q: jax.Array, latent: jax.Array, turned: jax.Array, segments: dict[str, Any]
    ) -> jax.Array:
        """Keys and values of every head, made from ``latent``; [B, T, N, value_dim]."""
        config = self.config
        shape = (*turned.shape[:2], config.n_heads, turned.shape[-1])
        shared = jnp.broadcast_to(turned[:, :, None], shape)
        k = jnp.concatenate([self.key_up(latent), shared], axis=-1)
        v = self.value_up(latent)
        # Kernels want one head size for all three.
        fill = config.head_dim - config.value_dim
        if fill > 0:
            v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, fill)))
        k = keep(constrain(k, HEADS), "key")
        v = keep(constrain(v, HEADS), "value")
        return attend(q, k, v, **segments)[..., : config.value_dim]

    def _absorbed(
        self, q: jax.Array, latent: jax.Array, turned: jax.Array, segments: dict[str, Any]
    ) -> jax.Array:
        """The same with the up-projections of keys and values applied to queries and results.

        All heads then share one key [kv_rank + rotary.dim] and one value [kv_rank] a token, the
        cache itself, and nothing of size S * N * H is made (section 2.1.2).
        """
        plain, own = jnp.split(q, [self.config.nope_dim], axis=-1)
        plain = jnp.einsum("btnh,rnh->btnr", plain, self.key_up.weights(q.dtype))
        q = jnp.concatenate([plain, own], axis=-1)
        k = jnp.concatenate([latent, turned], axis=-1)[:, :, None]
        y = attend(q, k, latent[:, :, None], **segments)
        return jnp.einsum("btnr,rnh->btnh", y, self.value_up.weights(q.dtype))
