"""Selects the parameters that weight decay touches, by path; data that a dry run can print."""

from __future__ import annotations

from typing import Any

import jax
import optax

from t5x_llm.core.errors import check_choice

DECAY_MASKS = ("matrices", "matrices_and_embeddings", "all", "none")


def decay_mask(params: Any, rule: str = "matrices", logical_axes: Any = None) -> Any:
    """A tree of bool: whether each parameter decays.

    Under ``matrices`` these do not decay:
      * biases and scales: the last key is, or ends in, ``bias`` or ``scale``;
      * rates of decay of recurrences, kept as logarithms: the last key is ``a_log``;
      * norms: a key contains ``norm``;
      * embeddings, tables of positions included: a key contains ``embed`` or is ``positions``;
      * whatever else has fewer than two dimensions, the stacked ``layers`` dimension not counted
        where ``logical_axes`` are given.
    ``matrices_and_embeddings`` decays embeddings as well (GPT-2's convention in nanoGPT).

    Args:
      params: tree of arrays or ``jax.ShapeDtypeStruct``.
      rule: one of ``DECAY_MASKS``.
      logical_axes: tree like ``params`` of tuples of logical axis names.
    """
    check_choice("Optimizer.decay_mask", rule, DECAY_MASKS)
    if rule in ("all", "none"):
        return jax.tree.map(lambda _: rule == "all", params)
    tables = rule == "matrices_and_embeddings"
    if logical_axes is None:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: _decays(path, x.ndim, tables), params
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, x, axes: _decays(path, x.ndim - ("layers" in axes), tables),
        params,
        logical_axes,
    )


def _decays(path: tuple[Any, ...], ndim: int, tables: bool) -> bool:
    keys = keys_of(path)
    if keys and keys[-1].endswith(("bias", "scale", "a_log")):
        return False
    if any("norm" in key for key in keys) or ndim < 2:
        return False
    return tables or not any("embed" in key or key == "positions" for key in keys)


def keys_of(path: tuple[Any, ...]) -> list[str]:
    """The keys of a pytree path as lower-case strings."""
    return [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))).lower() for k in path]


def decay_summary(params: Any, rule: str = "matrices", logical_axes: Any = None) -> dict[str, bool]:
    """``decay_mask`` as {dotted path: decays}, sorted by path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(decay_mask(params, rule, logical_axes))
    return {name: bool(x) for name, x in sorted((".".join(keys_of(p)), x) for p, x in flat)}


def scale_named(name: str, factor: float) -> optax.GradientTransformation:
    """Returns a transformation that multiplies the updates of parameters with this last key."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        def one(path: Any, x: jax.Array) -> jax.Array:
            return x * factor if keys_of(path)[-1] == name else x

        return jax.tree_util.tree_map_with_path(one, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
