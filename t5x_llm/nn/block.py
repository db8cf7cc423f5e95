"""A residual block, and a scan over a stack of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import check_number
from t5x_llm.nn.attention import Attention, AttentionConfig, Context
from t5x_llm.nn.mlp import Mlp, MlpConfig
from t5x_llm.nn.norm import Norm, NormConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.remat import remat_policy
from t5x_llm.parallel import constrain

RESIDUAL = ("batch", "length", "embed")
Cache = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    attention: AttentionConfig
    mlp: MlpConfig
    norm: NormConfig


@dataclasses.dataclass(frozen=True)
class GroupConfig:
    """``blocks`` in order, the whole sequence ``repeat`` times: len(blocks) * repeat layers.

    The repeats are scanned, so compile time does not grow with depth, and a pattern of unlike
    layers (local and global attention, say) is one group of several blocks.
    """

    blocks: tuple[BlockConfig, ...]
    repeat: int

    def __post_init__(self) -> None:
        check_number("GroupConfig.repeat", self.repeat, low=1, integer=True)

    @property
    def n_layers(self) -> int:
        """Layers in the group."""
        return len(self.blocks) * self.repeat


class Block(nnx.Module):
    """One pre-norm layer: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: BlockConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs):
        self.attention_norm = Norm(config.norm, d_model)
        self.attention = Attention(config.attention, d_model, init, rngs)
        self.mlp_norm = Norm(config.norm, d_model)
        self.mlp = Mlp(config.mlp, d_model, init, rngs)

    def init_cache(self, batch: int, length: int, dtype: jnp.dtype) -> Cache:
        """The decoding state of this layer."""
        return {"attention": self.attention.init_cache(batch, length, dtype)}

    def __call__(
        self, x: jax.Array, context: Context, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        y, kv = self.attention(
            self.attention_norm(x), context, None if cache is None else cache["attention"]
        )
        x = constrain(x + y, RESIDUAL)
        x = constrain(x + self.mlp(self.mlp_norm(x)), RESIDUAL)
        return x, None if cache is None else {"attention": kv}


class Group(nnx.Module):
    """``repeat`` copies of a block sequence; every parameter carries a leading axis of repeats."""

    def __init__(self, config: GroupConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs):
        self.config = config

        for i, block in enumerate(config.blocks):

            def make(key: jax.Array, block: BlockConfig = block) -> Block:
                return Block(block, d_model, init, nnx.Rngs(params=key))

            keys = jax.random.split(rngs.params(), config.repeat)
            graphdef = nnx.graphdef(nnx.eval_shape(make, keys[0]))
            state = jax.vmap(lambda key, make=make: nnx.state(make(key)))(keys)
            setattr(self, f"block_{i}", nnx.merge(graphdef, state))

    def init_cache(self, batch: int, length: int, dtype: jnp.dtype) -> Cache:
        """Decoding states of all layers, stacked over repeats."""
        one = {
            f"block_{i}": getattr(self, f"block_{i}").init_cache(batch, length, dtype)
            for i in range(len(self.config.blocks))
        }
        return jax.tree.map(lambda a: jnp.zeros((self.config.repeat, *a.shape), a.dtype), one)

    def __call__(
        self, x: jax.Array, context: Context, cache: Cache | None, remat: str
    ) -> tuple[jax.Array, Cache | None]:
        names = [f"block_{i}" for i in range(len(self.config.blocks))]
        split = {name: nnx.split(getattr(self, name)) for name in names}
        graphdefs = {name: graphdef for name, (graphdef, _) in split.items()}
        params = {name: state for name, (_, state) in split.items()}

        def body(x: jax.Array, xs: Any) -> tuple[jax.Array, Any]:
            layer, states = xs
            new = {}
            for name in names:
                block = nnx.merge(graphdefs[name], layer[name])
                x, new[name] = block(x, context, None if states is None else states[name])
            return x, (None if states is None else new)

        if remat != "none" and cache is None:
            body = jax.checkpoint(body, policy=remat_policy(remat), prevent_cse=False)
        return jax.lax.scan(body, x, (params, cache))
