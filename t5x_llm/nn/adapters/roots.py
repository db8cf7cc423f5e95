"""Roots of a parameter tree with adapters: the frozen model, and what is trained beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BASE, ADAPTER, INITIAL = "base", "adapter", "initial"
ROOTS = (BASE, ADAPTER, INITIAL)


def root_of(path: tuple[str, ...]) -> str:
    """Returns the root of a parameter.

    Args:
      path: keys in the model's tree.

    Returns:
      ``adapter`` if it is trained, ``initial`` if it is an adapter's frozen start, else ``base``.
    """
    if not any(name == ADAPTER or name.endswith("_adapter") for name in path):
        return BASE
    return INITIAL if path[-1].startswith("initial_") else ADAPTER


def split(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Splits a model's tree into its roots, each with the model's paths; empty ones are left out.

    Args:
      tree: nested dict, whose leaves may be anything.
    """
    parts = {root: _chosen(tree, (), root) for root in ROOTS}
    return {root: part for root, part in parts.items() if part or root != INITIAL}


def merge(roots: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the model's tree of its roots: the inverse of ``split``."""
    merged: dict[str, Any] = {}
    for part in roots.values():
        _add(merged, part)
    return merged


def _chosen(tree: Mapping[str, Any], path: tuple[str, ...], root: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        here = (*path, name)
        if isinstance(value, Mapping):
            if part := _chosen(value, here, root):
                found[name] = part
        elif root_of(here) == root:
            found[name] = value
    return found


def _add(tree: dict[str, Any], part: Mapping[str, Any]) -> None:
    for name, value in part.items():
        if isinstance(value, Mapping):
            _add(tree.setdefault(name, {}), value)
        else:
            tree[name] = value
