"""Extension of griffe, which reads the docstrings for the documentation site: examples are code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^(Example:)\n((?:[ \t]+\S.*\n?|[ \t]*\n)+)", re.M)


def fenced(docstring: str) -> str:
    """Returns a docstring whose section "Example:" is a fenced block of Python."""
    return _EXAMPLE.sub(
        lambda match: f"{match[1]}\n  ```python\n{match[2].rstrip()}\n  ```\n", docstring
    )


class Examples(griffe.Extension):
    """Fences the examples of every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Changes the docstring of a function, class or module as it is loaded."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)
