"""Configurations as plain data, and what differs between two of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

ABSENT = "(absent)"


def to_dict(value: Any) -> Any:
    """``value`` as JSON-able data: dataclasses become dicts that keep their ``class`` name.

    Tuples become lists, paths strings, functions and classes their qualified names, anything else
    its ``repr``.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(k): to_dict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


def diff(old: Any, new: Any) -> list[str]:
    """What changed between two results of ``to_dict``: lines ``field: old -> new``, sorted."""
    before, after = _flatten(old), _flatten(new)
    lines = []
    for field in sorted(before.keys() | after.keys()):
        a, b = (repr(side[field]) if field in side else ABSENT for side in (before, after))
        if a != b:
            lines.append(f"{field}: {a} -> {b}")
    return lines


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, (list, tuple)) and any(isinstance(v, (dict, list)) for v in value):
        items = dict(enumerate(value)).items()
    else:
        return {prefix: list(value) if isinstance(value, tuple) else value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(_flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat
