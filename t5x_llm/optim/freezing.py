"""Selects the parameters that are trained, by their paths."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import jax

from t5x_llm.core.errors import ConfigError
from t5x_llm.optim.masks import keys_of


def trained_mask(tree: Any, trained: Sequence[str], is_leaf: Any = None) -> Any:
    """Returns a tree of bool, True for each parameter that is trained.

    Args:
      tree: a tree like the parameters.
      trained: the trained ones: the first keys of a path, as 'embed' or 'group_0.block_1', or a
        pattern for the whole path with * in it, as '*_norm.scale'. None of them trains all.
      is_leaf: as in ``jax.tree.map``.

    Raises:
      ConfigError: an entry of ``trained`` matches no parameter.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    names = [".".join(keys_of(path)) for path, _ in flat]
    for pattern in trained:
        if not any(_is(name, pattern) for name in names):
            first = sorted({name.split(".")[0] for name in names})
            raise ConfigError(
                "Optimizer.trained",
                pattern,
                "the path of parameters, or a pattern for some",
                f"Paths begin with {', '.join(first)}; --dry_run prints them all.",
            )

    def chosen(path: Any, _: Any) -> bool:
        name = ".".join(keys_of(path))
        return not trained or any(_is(name, pattern) for pattern in trained)

    return jax.tree_util.tree_map_with_path(chosen, tree, is_leaf=is_leaf)


def _is(name: str, pattern: str) -> bool:
    if "*" in pattern:
        return fnmatch.fnmatchcase(name, pattern.lower())
    return f"{name}.".startswith(f"{pattern.lower()}.")


def select_trained(mask: Any, tree: Any) -> Any:
    """Returns ``tree`` with None, which is no leaf to JAX, wherever ``mask`` is False."""
    return jax.tree.map(lambda trained, x: x if trained else None, mask, tree)


def merge_frozen(trained: Any, whole: Any) -> Any:
    """Returns ``trained``, with the leaves of ``whole`` where it has None."""
    return jax.tree.map(
        lambda x, other: other if x is None else x, trained, whole, is_leaf=lambda x: x is None
    )
