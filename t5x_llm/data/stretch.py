"""Stretch of a file, the unit of which jobs are made."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Whole lines of a file, bytes [start, stop); ``line`` is the number of the first line."""

    file: int
    path: str
    start: int
    stop: int
    line: int
