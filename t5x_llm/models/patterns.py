"""Reading einops patterns (https://einops.rocks)."""

from __future__ import annotations

import re
from collections.abc import Mapping


def terms(pattern: str) -> list[str]:
    """Top-level terms of an einops pattern: 'D (P N) H' gives ['D', '(P N)', 'H']."""
    return re.findall(r"\([^)]*\)|\S+", pattern)


def unnested(pattern: str) -> str:
    """The pattern without parentheses."""
    return " ".join(re.sub(r"[()]", " ", pattern).split())


def used(sizes: Mapping[str, int], atoms: str) -> dict[str, int]:
    """Those of the sizes whose axes are in a pattern without parentheses."""
    names = atoms.split()
    return {k: v for k, v in sizes.items() if k in names}
