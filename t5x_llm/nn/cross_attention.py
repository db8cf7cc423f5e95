"""Attention of a decoder's tokens to what an encoder made (arXiv 1706.03762, section 3.2.3)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.nn.attention import KEYS, QUERIES
from t5x_llm.nn.block import BlockConfig
from t5x_llm.nn.cache import CachedLayer
from t5x_llm.nn.dense import Dense
from t5x_llm.nn.kernels import attend, keep
from t5x_llm.nn.layer import Aux, Cache, Context, LayerConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.parallel import constrain

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class CrossAttentionConfig:
    """A cross-attention layer; the encoder is as wide as the decoder.

    Attributes:
      n_heads: N.
      head_dim: H.
      qkv_bias: biases on the query, key and value projections.
      out_bias: bias on the output projection.
      scale: factor on the logits; None means 1/sqrt(H).
    """

    n_heads: int
    head_dim: int
    qkv_bias: bool
    out_bias: bool
    scale: float | None

    part: ClassVar[str] = "cross_attention"

    def __post_init__(self) -> None:
        for name in ("n_heads", "head_dim"):
            check_number(f"CrossAttentionConfig.{name}", getattr(self, name), low=1, integer=True)
        if self.scale is not None:
            check_number("CrossAttentionConfig.scale", self.scale, above=0)

    @property
    def width(self) -> int:
        """N * H: what each pair of tokens costs in FLOPs is proportional to it."""
        return self.n_heads * self.head_dim

    def make(self, d_model: int, init: InitConfig, rngs: nnx.Rngs) -> CrossAttention:
        """The layer."""
        return CrossAttention(self, d_model, init, rngs)


class CrossAttention(CachedLayer):
    """[B, T, D] -> [B, T, D]; a token sees ``context.encoded`` where segments are equal."""

    def __init__(
        self, config: CrossAttentionConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs
    ):
        self.config = config
        n, h = config.n_heads, config.head_dim
        heads: dict[str, Any] = dict(bias=config.qkv_bias, rngs=rngs)
        axes = ("embed",), ("heads", "head")
        std, branch = init.kernel(d_model), init.kernel(d_model, branch=True)
        self.query = Dense((d_model,), (n, h), *axes, std=std * init.query_scale, **heads)
        self.key = Dense((d_model,), (n, h), *axes, std=std, **heads)
        self.value = Dense((d_model,), (n, h), *axes, std=branch, **heads)
        std = init.kernel(n * h, residual=True)
        self.out = Dense((n, h), (d_model,), *axes[::-1], std=std, bias=config.out_bias, rngs=rngs)

    def cache_kinds(self) -> dict[str, Any]:
        """Returns nothing: the first call, which has ``context.encoded``, adds its keys and values.

        They stay as they are: no later call writes them.
        """
        return {}

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Cache | None, Aux]:
        q = keep(constrain(self.query(x), QUERIES), "query")
        if context.encoded is None:
            assert cache is not None
            k, v = cache["key"], cache["value"]
        else:
            k = keep(constrain(self.key(context.encoded), KEYS), "key")
            v = keep(constrain(self.value(context.encoded), KEYS), "value")
            cache = None if cache is None else {"key": k, "value": v}
        assert context.encoder_segment_ids is not None
        y = attend(
            q,
            k,
            v,
            q_segment_ids=context.segment_ids,
            kv_segment_ids=context.encoder_segment_ids,
            q_positions=context.positions,
            kv_positions=jnp.zeros_like(context.encoder_segment_ids),
            causal=False,
            scale=self.config.scale,
        )
        return keep(self.out(constrain(y, QUERIES)), "attention_out"), cache, {}


@dataclasses.dataclass(frozen=True)
class CrossBlockConfig(BlockConfig):
    """A block with cross attention between the mixer and the feed-forward layer.

    Attributes:
      cross: the cross attention.
    """

    cross: LayerConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parallel != "no":
            raise ConfigError("BlockConfig.parallel", self.parallel, "'no' with cross attention")

    @property
    def layers(self) -> tuple[LayerConfig, ...]:
        """The layers in the order that they run."""
        mixer, *after = super().layers
        return (mixer, self.cross, *after)
