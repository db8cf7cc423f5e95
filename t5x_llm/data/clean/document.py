"""What a step of cleaning receives and answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A document on its way.

    Attributes:
      id: where it came from: ``source/file#number``, unique in a run.
      text: its text.
      meta: what is known of it: fields of its record, and what steps found (``language``, scores).
    """

    id: str
    text: str
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def language(self) -> str:
        """Its language as far as known: ``en``, ``zh``; otherwise empty."""
        return str(self.meta.get("language") or "")

    def concerns(self, language: str) -> bool:
        """Whether a step for ``language`` is meant: empty is any; what is unknown is judged."""
        return not language or self.language in ("", language)

    def with_text(self, text: str) -> Document:
        """The same document with another text."""
        return dataclasses.replace(self, text=text)

    def with_meta(self, **found: Any) -> Document:
        """The same document, more known of it."""
        return dataclasses.replace(self, meta={**self.meta, **found})


@dataclasses.dataclass(frozen=True, slots=True)
class Drop:
    """The answer of a step that keeps a document out.

    Attributes:
      reason: one of a few words a step, counted in the report: ``too short``.
      detail: the figure behind it, for the samples of the report.
      found: what the step would have put into ``meta``, for the histograms: scores.
    """

    reason: str
    detail: str = ""
    found: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Answer = Document | Drop


class Step(Protocol):
    """A frozen dataclass that gin can fill; pure: the same document gives the same answer.

    Mappings of counts that it puts into ``meta`` are summed in the report, floats drawn.
    ``open`` is called once in each worker and loads what the step needs (models, lists).
    """

    @property
    def name(self) -> str: ...

    def open(self) -> Callable[[Document], Answer]: ...
