"""Counts of what steps did: integers and chosen samples, which add up the same in any order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5x_llm.core.errors import DataError, T5xLLMError
from t5x_llm.data.clean.document import Answer, Document, Drop, Step

PRIVATE = ("pii",)  # steps whose samples do not show what was there before
SAMPLES = 4  # of each step and reason
SHOWN = 500  # characters of a sample
FAILED = "a step failed"


class Tally:
    """Tally of documents: read, kept, dropped, changed, quarantined.

    All it holds is ``data``, plain JSON: counts of documents and characters, read, kept and
    dropped, by source, step and reason; histograms of lengths and scores; samples, those with the
    smallest hash of their document's id. Tallies of parts, merged in any order and grouping, are
    the tally of the whole.
    """

    def __init__(self, data: Mapping[str, Any] | None = None):
        self.data: dict[str, Any] = dict(data or {})
        for key in ("sources", "steps", "quarantined", "lengths", "scores", "samples"):
            self.data.setdefault(key, {})

    def read(self, document: Document) -> None:
        """Counts a document that came in."""
        self._source(document, "read")
        _add(self.data["lengths"], ("read", _octave(len(document.text))))

    def kept(self, document: Document) -> None:
        """Counts a document that goes out."""
        self._source(document, "kept")
        _add(self.data["lengths"], ("kept", _octave(len(document.text))))

    def quarantined(self, reason: str, where: str, detail: str = "") -> None:
        """Counts what could not be read, or made a step fail; ``where`` is a document or file."""
        _add(self.data["quarantined"], (reason,))
        self._sample("quarantined", reason, where, lambda: {"detail": detail[:SHOWN]})

    def answered(self, step: str, before: Document, answer: Answer, **shown: str) -> None:
        """Counts what the step of that name answered; ``shown`` goes into samples of drops."""
        steps, size = self.data["steps"], len(before.text)
        if step not in steps or "seen" not in steps[step]:
            steps.setdefault(step, {})["seen"] = {"documents": 0, "characters": 0}
        seen = steps[step]["seen"]
        seen["documents"] += 1
        seen["characters"] += size
        if answer is before:
            return
        if isinstance(answer, Drop):
            _add(steps, (step, "dropped", answer.reason, "documents"))
            _add(steps, (step, "dropped", answer.reason, "characters"), size)
            self._found(step, answer.found)
            detail = answer.detail
            self._sample(
                *(step, answer.reason, before.id),
                lambda: {"text": before.text[:SHOWN], "detail": detail[:SHOWN], **shown},
            )
            return
        if answer.meta is not before.meta:
            old = before.meta
            self._found(step, {k: v for k, v in answer.meta.items() if old.get(k) is not v})
        if answer.text is not before.text and answer.text != before.text:
            _add(steps, (step, "edited", "documents"))
            _add(steps, (step, "edited", "before"), size)
            _add(steps, (step, "edited", "after"), len(answer.text))
            after = answer.text
            self._sample(step, "", before.id, lambda: _difference(step, before.text, after))

    def merge(self, other: Tally) -> None:
        """Adds another tally to this one."""
        for key, theirs in other.data.items():
            if key == "samples":
                for name, samples in theirs.items():
                    _keep_smallest(self.data["samples"].setdefault(name, []), samples)
            else:
                _sum(self.data.setdefault(key, {}), theirs)

    def to_json(self) -> dict[str, Any]:
        """Returns the counts with sorted keys: equal tallies give equal bytes."""
        return _sorted(self.data)

    @classmethod
    def from_json(cls, data: object) -> Tally:
        """Returns a tally that was written; raises DataError for anything else."""
        tally = cls()
        if not isinstance(data, dict) or not all(isinstance(v, dict) for v in data.values()):
            raise DataError("These are not counts of cleaning; clean that shard again.")
        tally.merge(cls(data))
        return tally

    def _source(self, document: Document, what: str) -> None:
        name = document.id.partition("/")[0]
        _add(self.data["sources"], (name, what, "documents"))
        _add(self.data["sources"], (name, what, "characters"), len(document.text))

    def _found(self, step: str, found: Mapping[str, Any]) -> None:
        for key, value in found.items():
            if isinstance(value, Mapping):
                for part, count in value.items():
                    if isinstance(count, int):
                        _add(self.data["steps"], (step, "counts", f"{key}: {part}"), count)
            elif isinstance(value, float) and math.isfinite(value):
                _add(self.data["scores"], (f"{step}: {key}", _bucket(value)))
            elif isinstance(value, str) and len(value) <= 40:
                _add(self.data["steps"], (step, "counts", f"{key}: {value}"))

    def _sample(
        self, step: str, reason: str, where: str, make: Callable[[], dict[str, str]]
    ) -> None:
        name = f"{step}\n{reason}"
        samples = self.data["samples"].setdefault(name, [])
        mark = hashlib.blake2b(f"{name}\n{where}".encode("utf-8", "replace"), digest_size=8)
        rank = mark.hexdigest()
        if len(samples) < SAMPLES or rank < samples[-1]["rank"]:
            _keep_smallest(samples, [{"rank": rank, "id": where, **make()}])


class Chain:
    """Steps, opened, applied in order until one drops the document; counted in ``tally``.

    A step that raises on a document ends no run: the document is quarantined with the error.
    """

    def __init__(self, steps: Sequence[Step], tally: Tally):
        self.tally = tally
        self._steps = [(step.name, step.open()) for step in steps]

    def __call__(self, document: Document) -> Answer:
        for name, step in self._steps:
            try:
                answer = step(document)
            except T5xLLMError:
                raise
            except Exception as e:
                detail = f"{name}: {type(e).__name__}: {e}"
                self.tally.quarantined(FAILED, document.id, detail)
                return Drop(FAILED, detail)
            self.tally.answered(name, document, answer)
            if isinstance(answer, Drop):
                return answer
            document = answer
        return document


def _add(counts: dict[str, Any], keys: Sequence[str], by: int = 1) -> None:
    *path, last = keys
    for key in path:
        if key not in counts:
            counts[key] = {}
        counts = counts[key]
    counts[last] = counts.get(last, 0) + by


def _sum(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping):
            _sum(into.setdefault(key, {}), value)
        elif isinstance(value, int):
            into[key] = into.get(key, 0) + value
        else:
            raise DataError(f"{key!r} of the counts is {value!r}, not a number.")


def _keep_smallest(samples: list[dict[str, str]], more: Sequence[Mapping[str, str]]) -> None:
    samples.extend(dict(each) for each in more)
    samples.sort(key=lambda each: (each["rank"], sorted(each.items())))
    del samples[SAMPLES:]


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return value


def _octave(size: int) -> str:
    """Returns the lower end of a length's bucket, a power of two."""
    return str(1 << (size.bit_length() - 1)) if size else "0"


def _bucket(value: float) -> str:
    """Returns the lower end of a score's bucket: twentieths up to 1, then quarter octaves."""
    if value <= 1:
        return f"{math.floor(round(value * 20, 6)) / 20:.2f}"
    return f"{2 ** (math.floor(4 * math.log2(value)) / 4):.4g}"


def _difference(step: str, before: str, after: str) -> dict[str, str]:
    """Returns both texts from shortly before the first place where they differ."""
    low, high = 0, min(len(before), len(after))
    while low < high:  # by halves: slices compare faster than characters
        middle = (low + high + 1) // 2
        low, high = (middle, high) if before[:middle] == after[:middle] else (low, middle - 1)
    start = max(0, low - 60)
    shown = {"text": after[start : start + SHOWN]}
    if step not in PRIVATE:
        shown["before"] = before[start : start + SHOWN]
    return shown
