"""A residual block, and a scan over a stack of them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.nn.adapters.bottleneck import Bottlenecks
from t5x_llm.nn.cache import CachedLayer
from t5x_llm.nn.layer import Aux, Cache, Context, LayerConfig
from t5x_llm.nn.norm import Norm, NormConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.remat import keep_stream, remat_policy
from t5x_llm.parallel import constrain

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Float32

RESIDUAL = ("batch", "stream", "residual")
INPUT = ("batch", "length", "embed")
PARALLEL = ("no", "one_norm", "two_norms")


@dataclasses.dataclass(frozen=True)
class ResidualConfig:
    """Way a layer's output joins the residual stream: post(skip_scale * skip + out(f(pre(x)))).

    Attributes:
      pre: norm of the layer's input, or None.
      out: norm of its output (sandwich norm, arXiv 2105.13290; OLMo 2 has it without ``pre``).
      post: norm after the addition (the original Transformer).
      skip_scale: factor on the skipped x; DeepNorm's alpha (arXiv 2203.00555).
      skip_normed: what is skipped is pre(x), not x (ChatGLM-6B, an option of BLOOM).
    """

    pre: NormConfig | None
    out: NormConfig | None
    post: NormConfig | None
    skip_scale: float
    skip_normed: bool

    def __post_init__(self) -> None:
        check_number("ResidualConfig.skip_scale", self.skip_scale, above=0)
        if self.skip_normed and self.pre is None:
            raise ConfigError("ResidualConfig.skip_normed", True, "False where there is no pre")


def residual(pre: NormConfig | None, **changes: Any) -> ResidualConfig:
    """x + f(pre(x)), but for what ``changes`` say: fields of ``ResidualConfig``.

    Presets call this and not the class, so that a new field is no change to each of them.
    """
    plain: dict[str, Any] = dict(out=None, post=None, skip_scale=1.0, skip_normed=False)
    return ResidualConfig(pre=pre, **(plain | changes))


def pre_norm(norm: NormConfig) -> ResidualConfig:
    """x + f(norm(x))."""
    return residual(norm)


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """A sequence mixer, then a feed-forward layer, each joined as ``residual`` says.

    Attributes:
      mixer: attention or a recurrence.
      feed_forward: or None (Mamba).
      residual: how each joins the stream.
      parallel: 'no'; or x + mixer(norm(x)) + feed_forward(norm(x)) (GPT-J, PaLM) with
        'one_norm' for both or 'two_norms'.
    """

    mixer: LayerConfig
    feed_forward: LayerConfig | None
    residual: ResidualConfig
    parallel: str

    def __post_init__(self) -> None:
        check_choice("BlockConfig.parallel", self.parallel, PARALLEL)
        if self.parallel == "no":
            return
        residual = self.residual
        plain = residual.pre is not None and residual.out is residual.post is None
        if self.feed_forward is None or not plain or residual.skip_normed:
            raise ConfigError(
                "BlockConfig.parallel",
                self.parallel,
                "'no' unless there is a feed-forward layer and a plain pre-norm",
            )

    @property
    def layers(self) -> tuple[LayerConfig, ...]:
        """Mixer and feed-forward layer, without the absent one."""
        return (self.mixer,) if self.feed_forward is None else (self.mixer, self.feed_forward)


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


class Block(CachedLayer):
    """One layer of the stack: [B, T, D] -> [B, T, D].

    Parameters: the layers under the name of their part (``attention``, ``mlp``), and for each part
    ``<part>_norm``, ``<part>_out_norm`` and ``<part>_post_norm`` where the config has them.
    """

    adapter: Bottlenecks | None = None

    def __init__(self, config: BlockConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs):
        self.config, self.d_model = config, d_model
        residual = config.residual
        for layer in config.layers:
            part = layer.part
            shared = config.parallel == "one_norm" and layer is not config.mixer
            if residual.pre is not None and not shared:
                setattr(self, f"{part}_norm", Norm(residual.pre, d_model))
            setattr(self, part, layer.make(d_model, init, rngs))
            if residual.out is not None:
                setattr(self, f"{part}_out_norm", Norm(residual.out, d_model))
            if residual.post is not None:
                setattr(self, f"{part}_post_norm", Norm(residual.post, d_model))

    def cache_kinds(self) -> dict[str, Any]:
        """Returns those of its layers, by part."""
        return {layer.part: getattr(self, layer.part).cache_kinds() for layer in self.config.layers}

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Cache | None, Aux]:
        config, new, total = self.config, {}, Aux()
        skip_in = x
        for layer in config.layers:
            part = layer.part
            norm = config.mixer.part if config.parallel == "one_norm" else part
            # Parallel layers read the block's input, the others what came before them.
            source = x if config.parallel == "no" else skip_in
            inner = source if config.residual.pre is None else getattr(self, f"{norm}_norm")(source)
            whole = constrain(inner, INPUT)
            y, state, aux = getattr(self, part)(whole, context, cache and cache[part])
            x = self._join(part, inner if config.residual.skip_normed else x, y)
            new[part] = state
            for name, value in aux.items():
                total[name] = total[name] + value if name in total else value
        return x, None if cache is None else new, total

    def _join(self, part: str, skip: jax.Array, y: jax.Array) -> jax.Array:
        residual = self.config.residual
        y = constrain(y if self.adapter is None else self.adapter.after(part, y), RESIDUAL)
        if residual.out is not None:
            y = getattr(self, f"{part}_out_norm")(y)
        if residual.skip_scale != 1.0:
            skip = skip * jnp.asarray(residual.skip_scale, skip.dtype)
        x = constrain(skip + y, RESIDUAL)
        return x if residual.post is None else getattr(self, f"{part}_post_norm")(x)


class Group(CachedLayer):
    """``repeat`` copies of a block sequence; every parameter carries a leading axis of repeats."""

    def __init__(self, config: GroupConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs):
        self.config = config

        for i, block in enumerate(config.blocks):
            made: list[Any] = []  # filled while vmap traces: one trace gives both parts

            def make(key: jax.Array, block: Any = block, made: list[Any] = made) -> Any:
                graphdef, state = nnx.split(Block(block, d_model, init, nnx.Rngs(params=key)))
                made.append(graphdef)
                return state

            state = jax.vmap(make)(jax.random.split(rngs.params(), config.repeat))
            setattr(self, f"block_{i}", nnx.merge(made[0], state))

    def cache_kinds(self) -> dict[str, Any]:
        """Returns those of one unit, by block."""
        names = [f"block_{i}" for i in range(len(self.config.blocks))]
        return {name: getattr(self, name).cache_kinds() for name in names}

    def init_cache(self, batch: int, length: int, dtype: jnp.dtype) -> Cache:
        """Returns the caches of all units, stacked: [units, B, ...]."""
        one, repeat = super().init_cache(batch, length, dtype), self.config.repeat
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (repeat, *a.shape)), one)

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None, remat: str
    ) -> tuple[Float[Array, "B T D"], Cache | None, dict[str, Float32[Array, " L"]]]:
        """Returns x, the cache, and every layer's scalars: [layers that have it] a name."""
        x, new, auxes = run_units(*self.parts(), x, context, cache, remat)
        return x, new, join_aux(auxes.values())

    def parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns by block its structure, and by block its stacked parameters."""
        names = [f"block_{i}" for i in range(len(self.config.blocks))]
        split = {name: nnx.split(getattr(self, name)) for name in names}
        return {n: graphdef for n, (graphdef, _) in split.items()}, {
            n: state for n, (_, state) in split.items()
        }


def run_units(
    graphdefs: dict[str, Any],
    params: dict[str, Any],
    x: Float[Array, "B T D"],
    context: Context,
    cache: Cache | None,
    remat: str,
    held: Bool[Array, " units"] | None = None,
) -> tuple[Float[Array, "B T D"], Cache | None, dict[str, Aux]]:
    """Scans over the units of a group: x, the caches, and each block's scalars [units].

    Args:
      graphdefs: of ``Group.parts``.
      params: of ``Group.parts``, or stacks of some of its units.
      x: [B, T, D].
      context: as for every layer.
      cache: stacked over units.
      remat: as ``Group`` has it.
      held: bool [units]; a unit where it is False leaves x as it is. None for all True.
    """
    again = remat != "none" and cache is None

    def body(x: jax.Array, xs: Any) -> tuple[jax.Array, Any]:
        layer, states, mine = xs
        x = before = keep_stream(x, remat) if again else x
        new, auxes = {}, {}
        for name, graphdef in graphdefs.items():
            block = nnx.merge(graphdef, layer[name])
            x, new[name], auxes[name] = block(x, context, states and states[name])
        if mine is not None:
            x = jnp.where(mine, x, before)
        return x, (None if states is None else new, auxes)

    if again:
        body = jax.checkpoint(body, policy=remat_policy(remat), prevent_cse=False)
    x, (new, auxes) = jax.lax.scan(body, x, (params, cache, held))
    return x, new, auxes


def join_aux(parts: Any) -> dict[str, Float32[Array, " L"]]:
    """Dicts of scalars or vectors to one dict of vectors."""
    joined: dict[str, list[jax.Array]] = {}
    for part in parts:
        for name, value in part.items():
            joined.setdefault(name, []).append(jnp.atleast_1d(value))
    return {name: jnp.concatenate(values) for name, values in joined.items()}
