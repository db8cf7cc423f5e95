"""Compares a checkpoint with this run: configs field by field, trees leaf by leaf."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from t5x_llm.config.describe import to_dict
from t5x_llm.core.errors import CheckpointError

_CLASS = "class"
_SHOWN = 8


def differences(saved: Any, present: Any) -> list[str]:
    """Fields in which two results of ``config.to_dict`` differ: ``Llama.d_model: 256 -> 512``."""
    return [found.text for found in _differences(saved, present, ("",), "")]


def is_allowed(names: Sequence[str], allow: Sequence[str]) -> bool:
    """Returns True if an entry of ``allow_changes`` is one of the names, or the class of one.

    An entry may be written as gin writes a name: with a scope, ``en/Source.files``, which then is
    asked for, and with the module before the class, which is not.
    """
    for entry in allow:
        scope, slash, name = entry.rpartition("/")
        parts = name.split(".")
        spelled = {scope + slash + ".".join(parts[-2:])}
        if parts[-1][:1].isupper():  # a class, behind its module
            spelled.add(scope + slash + parts[-1])
        for field in names:
            where, bar, last = field.rpartition("/")
            if field in spelled or where + bar + last.split(".")[0] in spelled:
                return True
    return False


def check_compatible(
    saved: Any,
    present: Any,
    where: str,
    allow: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
    free: Sequence[str] = (),
) -> list[str]:
    """Compares the configs of a checkpoint and of the present run.

    Args:
      saved: what the checkpoint's meta holds, from ``config.to_dict``.
      present: the same of this run, or the dataclasses themselves.
      where: the checkpoint, for the message.
      allow: names that may differ, ``Schedule.peak`` or a whole class, ``Schedule``.
      names: keys of the outermost dict to the names under which a user binds them.
      free: names that may differ and need no word.

    Returns:
      The differences that ``allow`` allows, in words.

    Raises:
      CheckpointError: listing every other field that differs, and what to do.
    """
    names = names or {}
    first, second = (
        {names.get(key, key): value for key, value in side.items()}
        for side in (json.loads(json.dumps(saved)), to_dict(present))
    )
    found = [
        each for each in _differences(first, second, ("",), "") if not is_allowed(each.names, free)
    ]
    # An operative config of an older version has the keys themselves.
    older = {name: key for key, name in names.items()}
    refused = [
        each
        for each in found
        if not is_allowed((*each.names, *(older.get(n, n) for n in each.names)), allow)
    ]
    if refused:
        count = f"{len(refused)} fields differ" if len(refused) > 1 else "1 field differs"
        raise CheckpointError(
            f"{where} was made by another configuration; {count} (checkpoint -> this run):\n"
            + _listing([each.text for each in refused])
            + "\nSet them back to continue that run, or choose another run directory for a new "
            "one. A change that is meant goes into CheckpointConfig.allow_changes, e.g. "
            f"({refused[0].names[0]!r},)."
        )
    return [each.text for each in found]


class _Difference(NamedTuple):
    """One field that differs: the names by which gin knows it, and a line for the message."""

    names: tuple[str, ...]
    text: str


def _differences(
    saved: Any, present: Any, names: tuple[str, ...], path: str
) -> Iterator[_Difference]:
    """Yields every difference below ``path``, whose own names are ``names``."""
    if isinstance(saved, dict) and isinstance(present, dict):
        if saved.get(_CLASS) != present.get(_CLASS):
            label = names[0] or path
            text = f"{label}: {saved.get(_CLASS)} -> {present.get(_CLASS)}"
            yield _Difference((label, *names[1:]), text)
            return
        for key in dict.fromkeys([*saved, *present]):
            below = f"{path}.{key}" if path else key
            labels = _labels(present, key, below)
            if key not in saved or key not in present:
                old, new = (_shown(side, key) for side in (saved, present))
                yield _Difference(labels, f"{labels[0]}: {old} -> {new}")
            else:
                yield from _differences(saved[key], present[key], labels, below)
    elif (
        isinstance(saved, list)
        and isinstance(present, list)
        and len(saved) == len(present)
        and any(isinstance(v, dict) for v in present)
    ):
        for i, (old, new) in enumerate(zip(saved, present, strict=True)):
            yield from _differences(old, new, names, f"{path}[{i}]")
    elif saved != present or isinstance(saved, bool) != isinstance(present, bool):
        if saved == saved or present == present:
            place = f" (in {path})" if "[" in path else ""
            yield _Difference(names, f"{names[0]}: {_short(saved)} -> {_short(present)}{place}")


def _labels(owner: dict[str, Any], key: str, path: str) -> tuple[str, ...]:
    """Returns the names of a field: ``Source.files``, and ``en/Source.files`` where it is en's."""
    if not (kind := owner.get(_CLASS)):
        return (path,)
    scope = owner.get("name")
    named = (f"{scope}/{kind}.{key}",) if isinstance(scope, str) and scope else ()
    return (f"{kind}.{key}", *named)


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
