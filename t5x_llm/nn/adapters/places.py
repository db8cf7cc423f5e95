"""Places of a model where adapters are attached that belong to no linear layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.rng import fold_name
from t5x_llm.nn.block import Block, Group

if TYPE_CHECKING:
    from jaxtyping import Array, Key


def blocks(module: nnx.Module) -> Iterator[tuple[str, Block, int]]:
    """Yields every block of a module, encoders' too: (path, block, copies stacked in it)."""
    for path, group in nnx.iter_modules(module):
        if isinstance(group, Group):
            for i in range(len(group.config.blocks)):
                name = f"block_{i}"
                yield ".".join([*map(str, path), name]), getattr(group, name), group.config.repeat


def drawn(
    part: Any,
    path: str,
    key: Key[Array, ""],
    std: Callable[[str], float],
    repeat: int | None = None,
) -> Any:
    """Returns a module with fresh parameters, each drawn by ``key`` and its path alone.

    Args:
      part: the module.
      path: its path in the model.
      key: random key of all adapters.
      std: standard deviation of a parameter, by its name.
      repeat: copies of each parameter that are stacked, as a group has them; None for one.
    """
    graphdef, state = nnx.split(part)

    def one(keys: Any, variable: nnx.Variable) -> nnx.Variable:
        name = ".".join(str(getattr(k, "key", k)) for k in keys)
        shape = variable.shape if repeat is None else (repeat, *variable.shape)
        own, size = fold_name(key, f"{path}.{name}"), std(name.rpartition(".")[2])
        return variable.replace(size * jax.random.normal(own, shape, jnp.float32))

    def is_leaf(x: Any) -> bool:
        return isinstance(x, nnx.Variable)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(one, state, is_leaf=is_leaf))
