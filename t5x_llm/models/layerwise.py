"""A decoder's forward pass with one layer's parameters in memory at a time.

Slow, as every layer is loaded for every call; for models that are larger than the memory at hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_llm.core.dtypes import Policy
from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import flatten, unflatten
from t5x_llm.nn.adapters.config import Adapter

# (path of a parameter, repeat or None) -> array; a repeat comes without the leading axis.
Load = Callable[[str, int | None], np.ndarray]

_FIRST = (
    "embed",
    "position_embed",
    "type_embed",
    "embed_norm",
    "embed_in",
)  # what `embedded` reads


def layerwise_logits(
    config: DecoderConfig,
    policy: Policy,
    load: Load,
    jit: Callable[[Any], Any] = jax.jit,
    adapter: Adapter | None = None,
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from tokens [T] of one document to float32 logits [T, V].

    Args:
      config: the architecture.
      policy: as the ``Model``'s.
      load: called for a parameter when it is needed, and again for the next prompt.
      jit: compiles a function of (parameters and hidden states, tokens).
      adapter: trained parts beside the architecture's, without virtual tokens; ``load`` gives their
        parameters too.
    """
    groups = tuple(dataclasses.replace(group, repeat=1) for group in config.groups)
    model = Model(dataclasses.replace(config, groups=groups), policy, adapter=adapter)
    paths = list(flatten(model.abstract_params()))

    def part(wanted: Iterable[str], repeat: int | None = None) -> Any:
        found = {}
        for path in wanted:  # each goes to the device before the next is made
            array = load(path, repeat)
            found[path] = jnp.array(array if repeat is None else array[None])
        return unflatten(found)

    def of(*tops: str) -> list[str]:
        return [path for path in paths if path.split(".")[0] in tops]

    layers = [f"group_{i}" for i in range(len(groups))]
    tops = list(model.abstract_params())
    shared = [top for top in tops if top.startswith("relative_")]
    first = [top for top in tops if top in _FIRST]
    last = [top for top in tops if top not in (*_FIRST, *layers, *shared)]
    last += ["embed"] if config.tied else []

    def rows(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        positions = jnp.arange(tokens.shape[1])[None]
        return positions, jnp.ones_like(tokens)

    @jit
    def begin(params: Any, tokens: jax.Array) -> jax.Array:
        return model.bind(params).embedded(tokens, *rows(tokens), policy.compute_dtype)

    def layer(name: str) -> Any:
        @jit
        def step(given: tuple[Any, jax.Array], tokens: jax.Array) -> jax.Array:
            params, x = given
            module = model.bind(params)
            return getattr(module, name)(x, module.context(*rows(tokens)), None, "none")[0]

        return step

    @jit
    def end(given: tuple[Any, jax.Array]) -> jax.Array:
        params, x = given
        module = model.bind(params)
        return module.logits(module.normed(x))

    steps = [layer(name) for name in layers]

    def logits(tokens: np.ndarray) -> np.ndarray:
        ids = jnp.asarray(tokens, jnp.int32)[None]
        with jax.default_matmul_precision("highest"):
            x = begin(part(of(*first)), ids)
            for name, step, group in zip(layers, steps, config.groups, strict=True):
                for repeat in range(group.repeat):
                    x = step((part(of(name), repeat) | part(of(*shared)), x), ids)
                    x.block_until_ready()  # so that the layer's parameters go before the next come
            return np.asarray(end((part(of(*last)), x))[0], np.float32)

    return logits
