"""Interface of the steps of cleaning: a document in, a document or a drop out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """Document on its way through a cleaning.

    Attributes:
      id: its origin, ``source/file#number``, unique in a run.
      text: its text.
      meta: what is known of it: fields of its record, and what steps found (``language``, scores).
    """

    id: str
    text: str
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def language(self) -> str:
        """The document's language, such as ``en`` or ``zh``; empty if it is not known."""
        return str(self.meta.get("language") or "")

    def concerns(self, language: str) -> bool:
        """Returns whether a step for ``language`` applies: empty is any, unknown is judged."""
        return not language or self.language in ("", language)

    def with_text(self, text: str) -> Document:
        """Returns the same document with another text."""
        return dataclasses.replace(self, text=text)

    def with_meta(self, **found: Any) -> Document:
        """Returns the same document with further entries of ``meta``."""
        return dataclasses.replace(self, meta={**self.meta, **found})


@dataclasses.dataclass(frozen=True, slots=True)
class Drop:
    """Answer of a step that keeps a document out.

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
    """Step of cleaning: a frozen dataclass, pure, so that equal documents get equal answers.

    Mappings of counts that it puts into ``meta`` are summed in the report, floats drawn.
    ``open`` is called once in each worker and loads what the step needs (models, lists).
    """

    @property
    def name(self) -> str: ...

    def open(self) -> Callable[[Document], Answer]: ...
