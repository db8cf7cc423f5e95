"""One changed copy of a config dataclass for each of its fields, children included."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from t5x_llm.core.errors import ConfigError

_CHOICES = {
    "rms": "layer",
    "layer": "rms",
    "ones": "zeros",
    "zeros": "ones",
    "none": "ones",
    "silu": "gelu",
    "relu": "gelu",
    "no": "two_norms",
    "one_norm": "two_norms",
    "two_norms": "one_norm",
    "linear": "yarn",
    "yarn": "linear",
    "llama3": "linear",
    "head": "all",
    "heads": "head",
    "all": "head",
}


def changes(config: Any) -> Iterator[tuple[str, Any]]:
    """(dotted field, changed copy, or None where the change is refused)."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            for name, changed in changes(value):
                yield f"{field.name}.{name}", _replaced(config, field.name, changed)
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            for i, item in enumerate(value):
                for name, changed in changes(item):
                    items = None if changed is None else (*value[:i], changed, *value[i + 1 :])
                    yield f"{field.name}.{i}.{name}", _replaced(config, field.name, items)
        elif (other := _other(value)) is not None:
            yield field.name, _replaced(config, field.name, other)


def _other(value: Any) -> Any:
    """Another value of the same type, or None where there is none to try."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value * 2 or 1
    if isinstance(value, float):
        return value * 1.5 or 1.0
    if isinstance(value, str):
        return _CHOICES.get(value, "relu")
    if isinstance(value, tuple) and value:
        return (_other(value[0]), *value[1:])
    return None


def _replaced(config: Any, name: str, value: Any) -> Any:
    if value is None:
        return None
    try:
        return dataclasses.replace(config, **{name: value})
    except ConfigError:
        return None
