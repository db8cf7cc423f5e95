"""Numbers as a person reads them."""

from __future__ import annotations

import math
import re
from typing import Any

from t5x_llm.core.errors import ConfigError

GB, GIB = 1e9, 1024**3  # bytes
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: float) -> str:
    """Bytes, in the unit that suits."""
    power = min(int(math.log(max(count, 1), 1024)), len(_UNITS) - 1)
    return f"{count / 1024**power:,.{0 if power == 0 else 2}f} {_UNITS[power]}"


_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def count(field: str, value: Any) -> int:
    """A number of things as a person writes it: 300_000, '300k', '2B', '1.5T'.

    Raises:
      ConfigError: it is something else, or below 1.
    """
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmbt]?)", value.strip().lower(), re.ASCII)
        number = round(float(found[1]) * _COUNTS[found[2]]) if found else 0
    else:
        number = value if isinstance(value, int) and not isinstance(value, bool) else 0
    if number < 1:
        raise ConfigError(field, value, "a number of at least 1, such as 300_000, '300k' or '2B'")
    return number


def short(number: float) -> str:
    """A number of things in three digits: 2B, 1.54M, 812."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale * 0.9995:
            return f"{number / scale:.3g}{unit}"
    return f"{number:.3g}"
