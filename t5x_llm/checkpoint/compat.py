"""Compares a checkpoint with this run: configs field by field, trees leaf by leaf."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from t5x_llm.config.describe import to_dict
from t5x_llm.core.errors import CheckpointError

_CLASS = "class"
_SHOWN = 8


def differences(saved: Any, present: Any) -> list[str]:
    """Fields in which two results of ``config.to_dict`` differ: ``Llama.d_model: 256 -> 512``."""
    return [line for _, line in _differences(saved, present, "", "")]


def check_compatible(saved: Any, present: Any, where: str, allow: Sequence[str] = ()) -> None:
    """Compares the configs of a checkpoint and of the present run.

    Args:
      saved: what the checkpoint's meta holds, from ``config.to_dict``.
      present: the same of this run, or the dataclasses themselves.
      where: the checkpoint, for the message.
      allow: names that may differ, ``Schedule.peak`` or a whole class, ``Schedule``.

    Raises:
      CheckpointError: listing every field that differs, and what to do.
    """
    found = [
        (name, line)
        for name, line in _differences(json.loads(json.dumps(saved)), to_dict(present), "", "")
        if name not in allow and name.split(".")[0] not in allow
    ]
    if not found:
        return
    count = f"{len(found)} fields differ" if len(found) > 1 else "1 field differs"
    raise CheckpointError(
        f"{where} was made by another configuration; {count} (checkpoint -> this run):\n"
        + _listing([line for _, line in found])
        + "\nSet them back to continue that run, or choose another run directory for a new one. "
        "A change that is meant goes into CheckpointConfig.allow_changes, e.g. "
        f"({found[0][0]!r},)."
    )


def _differences(saved: Any, present: Any, name: str, path: str) -> Iterator[tuple[str, str]]:
    """(field as gin knows it, line for the message) of every difference below ``path``."""
    if isinstance(saved, dict) and isinstance(present, dict):
        if saved.get(_CLASS) != present.get(_CLASS):
            label = name or path
            yield label, f"{label}: {saved.get(_CLASS)} -> {present.get(_CLASS)}"
            return
        kind = present.get(_CLASS)
        for key in dict.fromkeys([*saved, *present]):
            below = f"{path}.{key}" if path else key
            label = f"{kind}.{key}" if kind else below
            if key not in saved or key not in present:
                old, new = (_shown(side, key) for side in (saved, present))
                yield label, f"{label}: {old} -> {new}"
            else:
                yield from _differences(saved[key], present[key], label, below)
    elif (
        isinstance(saved, list)
        and isinstance(present, list)
        and len(saved) == len(present)
        and any(isinstance(v, dict) for v in present)
    ):
        for i, (old, new) in enumerate(zip(saved, present, strict=True)):
            yield from _differences(old, new, f"{name}[{i}]", f"{path}[{i}]")
    elif saved != present or isinstance(saved, bool) != isinstance(present, bool):
        if saved == saved or present == present:
            place = f" (in {path})" if "[" in path else ""
            yield name, f"{name}: {_short(saved)} -> {_short(present)}{place}"


def _shown(side: dict[str, Any], key: str) -> str:
    return _short(side[key]) if key in side else "(none)"


def _short(value: Any) -> str:
    if isinstance(value, dict) and _CLASS in value:
        return value[_CLASS]
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _listing(lines: Sequence[str]) -> str:
    more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join([f"  {line}" for line in lines[:_SHOWN]] + more)


def dotted(path: Sequence[Any]) -> str:
    """A jax key path as ``params.group_0.block_0.mlp.up.kernel``."""
    return ".".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)


def leaves(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """{dotted path: (shape, dtype name)} of every array of a tree."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {dotted(path): (tuple(x.shape), jax.numpy.dtype(x.dtype).name) for path, x in flat}


def check_tree(saved: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Compares the arrays in a checkpoint with those asked for; both from ``leaves``.

    Raises:
      CheckpointError: naming the parameters that differ.
    """
    lines = []
    for name in dict.fromkeys([*wanted, *saved]):
        if name not in saved:
            lines.append(f"{name}: not in the checkpoint, {_array(wanted[name])} in this run")
        elif name not in wanted:
            lines.append(f"{name}: {_array(saved[name])} in the checkpoint, not in this run")
        elif saved[name] != wanted[name]:
            lines.append(
                f"{name}: {_array(saved[name])} in the checkpoint, "
                f"{_array(wanted[name])} in this run"
            )
    if lines:
        here, there = (
            sum(math.prod(shape) for shape, _ in tree.values()) for tree in (wanted, saved)
        )
        raise CheckpointError(
            f"{where} does not fit this model and optimizer "
            f"({there:,} numbers in the checkpoint, {here:,} in this run):\n"
            + _listing(lines)
            + "\nUse the configuration that made it (operative_config.gin in its run directory), "
            "or another run directory."
        )


def _array(leaf: tuple[tuple[int, ...], str]) -> str:
    return f"{leaf[1]}{list(leaf[0])}"
