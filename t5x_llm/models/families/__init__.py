"""Model families: presets of the generic stacks, each with its weight map, found by their files."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from t5x_llm.models.family import Family


def _found() -> dict[str, Any]:
    """Every family of this package's modules by its Hugging Face model_type."""
    families: dict[str, Any] = {}
    for module in pkgutil.iter_modules(__path__):
        content = importlib.import_module(f"{__name__}.{module.name}")
        for name, value in vars(content).items():
            ours = isinstance(value, type) and value.__module__ == content.__name__
            if ours and issubclass(value, Family) and "hf_type" in vars(value):
                if value.hf_type in families:
                    raise TypeError(f"{name}: a second family of model_type {value.hf_type!r}")
                families[value.hf_type] = value
    return families


# Hugging Face's model_type to the family that reads it.
FAMILIES: dict[str, Any] = _found()
