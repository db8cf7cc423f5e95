"""Documents that hold an item of an evaluation set, by n-grams, are kept out and listed."""

from __future__ import annotations

import dataclasses
import re

from t5x_llm.core.errors import ConfigError, check_number


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """Items of an evaluation.

    Attributes:
      name: for the list of what was removed.
      files: jsonl, one item a line, or text, one item a line.
      fields: of an item in jsonl that count, such as question and answer; each is looked for by
        itself.
    """

    name: str
    files: str | tuple[str, ...]
    fields: tuple[str, ...] = ("text",)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"\w+", self.name, re.ASCII):
            raise ConfigError("EvalSet.name", self.name, "letters, digits and underscores")
        for field in ("files", "fields"):
            value = getattr(self, field)
            value = (value,) if isinstance(value, str) else tuple(value)
            if not value or not all(isinstance(each, str) and each for each in value):
                raise ConfigError(f"EvalSet.{field}", value, "at least one string")
            object.__setattr__(self, field, value)


@dataclasses.dataclass(frozen=True)
class Decontaminate:
    """Keeps out documents that share an n-gram with an evaluation set (Brown et al. 2020, app. C).

    Attributes:
      sets: what is looked for.
      ngram: words of English, characters of Chinese.
      shortest: an item of fewer than ``ngram`` of them is looked for whole if it has this many.
      hits: n-grams that a document must share with one item to be kept out.
    """

    sets: tuple[EvalSet, ...]
    ngram: int = 13
    shortest: int = 8
    hits: int = 1

    def __post_init__(self) -> None:
        sets = (self.sets,) if isinstance(self.sets, EvalSet) else tuple(self.sets)
        object.__setattr__(self, "sets", sets)
        if not sets or not all(isinstance(each, EvalSet) for each in sets):
            raise ConfigError("Decontaminate.sets", sets, "at least one EvalSet")
        names = [each.name for each in sets]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError("Decontaminate.sets", name, "names that differ")
        check_number("Decontaminate.ngram", self.ngram, low=2, high=64, integer=True)
        check_number("Decontaminate.shortest", self.shortest, low=2, integer=True)
        check_number("Decontaminate.hits", self.hits, low=1, integer=True)

    @property
    def name(self) -> str:
        return "decontaminate"
