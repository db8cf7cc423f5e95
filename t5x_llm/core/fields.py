"""Fields of configurations that came later than what is written down already."""

from __future__ import annotations

import dataclasses
from typing import Any

_LATER = {"later": True}


def later(default: Any) -> Any:
    """A dataclass field that ``config.to_dict`` leaves out at its default.

    So what an older version wrote down, a checkpoint's configuration, still compares equal.
    """
    return dataclasses.field(default=default, metadata=_LATER)


def unset(field: dataclasses.Field[Any], value: Any) -> bool:
    """Returns True for a field made by ``later`` whose ``value`` is its default."""
    return bool(field.metadata.get("later")) and bool(value == field.default)
