"""Search for evaluation sets: documents that share n-grams with an item are kept out and listed."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from t5x_llm.core import filesystems
from t5x_llm.core.errors import ConfigError, DataError, check_number
from t5x_llm.core.paths import here_or_shipped
from t5x_llm.data import formats
from t5x_llm.data.clean.document import Answer, Document, Drop
from t5x_llm.data.clean.hashing import ngrams, words
from t5x_llm.data.clean.read.bounded import QuarantineError


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """Items of an evaluation.

    Attributes:
      name: for the list of what was removed.
      files: paths or patterns, of every format that an ``Input`` has; a record is an item, and a
        line of text.
      fields: of a record that count, such as question and answer; each is looked for by itself.
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
        for file in self.files:
            filesystems.check_readable("EvalSet.files", file)


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

    def open(self) -> EvalSearch:
        """Reads the sets and returns the step that searches documents for them.

        Raises:
          DataError: a file that is not there, or is not what it should be; a set of which no item
            is long enough to be looked for.
        """
        return EvalSearch(self)


class EvalSearch:
    """Sorted n-grams of all items, with the item of each.

    Attributes:
      notes: lines for the user about items that are too short to be found.
    """

    def __init__(self, config: Decontaminate):
        self._hits = config.hits
        self._names: list[str] = []
        self.notes: list[str] = []
        grams: dict[int, list[np.ndarray]] = {}
        owners: dict[int, list[np.ndarray]] = {}
        for each in config.sets:
            items = looked_for = 0
            for name, text in _items(each):
                items += 1
                hashes = words(text)[0]
                size = min(config.ngram, len(hashes))
                if size < min(config.shortest, config.ngram):
                    continue
                looked_for += 1
                found = np.unique(ngrams(hashes, size))
                grams.setdefault(size, []).append(found)
                owners.setdefault(size, []).append(np.full(len(found), len(self._names)))
                self._names.append(name)
            if not looked_for:
                raise DataError(
                    f"EvalSet {each.name!r}: no item has {config.shortest} words (characters of "
                    "Chinese) or more. Lower Decontaminate.shortest, or check EvalSet.fields."
                )
            if looked_for < items:
                self.notes.append(
                    f"{each.name}: {items - looked_for:,} of {items:,} texts have fewer than "
                    f"{config.shortest} words and are not looked for"
                )
        self._tables = {size: _sorted(grams[size], owners[size]) for size in sorted(grams)}

    def __call__(self, document: Document) -> Answer:
        hashes, starts, ends = words(document.text)
        for size, (table, owners) in self._tables.items():
            if len(hashes) < size:
                continue
            found = ngrams(hashes, size)
            at = np.searchsorted(table, found)
            hit = np.flatnonzero(table[np.minimum(at, len(table) - 1)] == found)
            if not len(hit):
                continue
            # Of the items that share an n-gram the one that shares most, then the first.
            distinct, first = np.unique(at[hit], return_index=True)
            items, counts = np.unique(owners[distinct], return_counts=True)
            best = int(np.argmax(counts))
            # An item shorter than an n-gram is looked for whole.
            if counts[best] < min(self._hits, int((owners == items[best]).sum())):
                continue
            begin = int(hit[first[owners[distinct] == items[best]].min()])
            shared = document.text.lower()[starts[begin] : ends[begin + size - 1]]
            name = self._names[items[best]]
            return Drop(f"in {name.split('#')[0]}", f"{name}: {shared[:200]}")
        return document


def _sorted(grams: list[np.ndarray], owners: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct n-grams in order, and the first item that has each."""
    every, of = np.concatenate(grams), np.concatenate(owners)
    table, first = np.unique(every, return_index=True)
    return table, of[first]


def _items(each: EvalSet) -> Iterator[tuple[str, str]]:
    """Yields ``set#record`` and text of each field of each item."""
    for pattern in map(here_or_shipped, each.files):
        owner = f"EvalSet {each.name!r}"
        try:
            paths = filesystems.find(owner, "EvalSet.files", pattern)
        except DataError as e:
            reason = str(e).removeprefix(f"{owner}: ")
            raise DataError(f"{owner}: {pattern!r} cannot be read: {reason}") from e
        for path in paths:
            try:
                yield from _items_of(each, path)
            except (OSError, EOFError, QuarantineError) as e:
                reason = f"{e.reason}: {e.detail}" if isinstance(e, QuarantineError) else str(e)
                raise DataError(
                    f"{owner}: {path!r} cannot be read ({reason}). Check EvalSet.files."
                ) from e


def _items_of(each: EvalSet, path: str) -> Iterator[tuple[str, str]]:
    """Yields the items of one file: records, or lines of texts."""
    # What reads an input reads an evaluation set; here, since those modules know this one.
    from t5x_llm.data.clean.input_config import Input, Limits
    from t5x_llm.data.clean.read.formats import check_head, format_of
    from t5x_llm.data.clean.read.records import Bad, read
    from t5x_llm.data.clean.read.rows import rows
    from t5x_llm.data.stretch import Stretch

    named = formats.format_of(path)
    source = Input(
        each.name, path, format="auto" if named.name else "text", unit="line",
        field=each.fields[0], keep=each.fields[1:],
    )  # fmt: skip
    with filesystems.open_input(path) as file:
        head, content = formats.read_head(file, path)
    kind = format_of(source, path, content)
    check_head(head, kind)
    stretch = Stretch(0, path, 0, filesystems.stat(path).size, 1)
    limits = Limits.of_own_files()
    if kind.is_records:
        for number, record in rows(source, limits, stretch, kind):
            if isinstance(record, QuarantineError):
                raise QuarantineError(record.reason, f"record {number}: {record.detail}")
            for field in each.fields:
                yield f"{each.name}#{number}", _field(each, path, number, field, record)
        return
    for found in read(source, limits, stretch, path, kind):
        number = int(found.id.rpartition("#")[2])
        if isinstance(found, Bad):
            if found.reason in ("not a page", "empty text"):
                continue
            raise QuarantineError(found.reason, f"record {number}: {found.detail}")
        for line in filter(str.strip, found.text.splitlines()):
            yield f"{each.name}#{number}", line


def _field(each: EvalSet, path: str, number: int, field: str, record: Any) -> str:
    try:
        value = record[field]
    except (ValueError, TypeError, KeyError) as e:
        raise DataError(
            f"EvalSet {each.name!r}: {path}:{number} has no field {field!r} ({e}). "
            "Set EvalSet.fields, or repair the line."
        ) from e
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
