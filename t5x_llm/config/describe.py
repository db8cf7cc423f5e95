"""Configurations as plain data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from t5x_llm.core.fields import unset


def to_dict(value: Any) -> Any:
    """``value`` as JSON-able data: dataclasses become dicts that keep their ``class`` name.

    Tuples become lists, paths strings, functions and classes their qualified names, anything else
    its ``repr``.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: to_dict(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if not unset(f, getattr(value, f.name))
        }
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
