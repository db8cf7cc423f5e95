"""Originals: for each removed document, the one that stays."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from t5x_llm.core.paths import as_path
from t5x_llm.data.clean.dedup import exact, near
from t5x_llm.data.clean.dedup.context import DedupContext
from t5x_llm.data.clean.parts import read_part
from t5x_llm.data.clean.tally import SHOWN, Tally

IDS, FIRSTS, ORIGINALS = ".ids", ".firsts", ".originals"
_NAMED = 4  # documents at most that are named for one whose lines are in several


def write_ids(ids: Sequence[str], base: str) -> None:
    """Writes the ids of a part's documents, so that any one can be read alone."""
    raw = [each.encode() for each in ids]
    ends = np.cumsum([0, *map(len, raw)]).astype("<u8")
    as_path(base + IDS).write_bytes(ends.tobytes() + b"".join(raw))


def find_originals(context: DedupContext, _: None, base: str) -> None:
    """Writes, for each document, the number of the one that stays for it, mostly its own.

    A copy's first document may be in a cluster with an earlier one: both steps are followed until
    a document that stays.
    """
    offsets = context.offsets
    first = np.arange(offsets[-1])
    for number in range(len(context.parts)):
        begin = int(offsets[number])
        if context.dedup.minhash:
            first[begin : offsets[number + 1]] = near.first_of_clusters(context, number)
        if context.dedup.documents:
            found = exact.repeated(context, number, "sign", "copies")
            first[begin + found["unit"]] = offsets[found["part"]] + found["first"]
    while not np.array_equal(above := first[first], first):
        first = above
    as_path(base + ORIGINALS).write_bytes(first.astype("<u8").tobytes())


class Originals:
    """Documents that stay for the removed documents of one part.

    Args:
      context: context of the run.
      number: number of the part.
    """

    def __init__(self, context: DedupContext, number: int):
        if not (context.dedup.documents or context.dedup.minhash):
            return
        first, last = (int(i) for i in context.offsets[number : number + 2])
        with as_path(f"{context.work}/originals/originals{ORIGINALS}").open("rb") as file:
            file.seek(8 * first)
            self._numbers = np.frombuffer(file.read(8 * (last - first)), "<u8").astype(np.int64)
        removed = self._numbers != np.arange(first, last)
        self._ids = ids(context, self._numbers[removed], "sign")

    def __call__(self, unit: int) -> tuple[int, str]:
        """Returns number and id of the document that stays for a removed one."""
        number = int(self._numbers[unit])
        return number, self._ids[number]


def write_firsts(firsts: Sequence[int], base: str) -> None:
    """Writes the first line or paragraph of each of a part's documents."""
    as_path(base + FIRSTS).write_bytes(np.array(firsts, "<u4").tobytes())


def of_units(context: DedupContext, again: np.ndarray, begin: int, end: int) -> list[str]:
    """Returns ids of documents that have the lines or paragraphs ``begin`` to ``end`` of a part.

    Args:
      context: context of the run.
      again: [n] REPEAT, the part's units that repeat.
      begin: first of the units of one document.
      end: one past the last of them.
    """
    found = again[np.searchsorted(again["unit"], begin) : np.searchsorted(again["unit"], end)]
    numbers: dict[int, None] = {}
    firsts: dict[int, np.ndarray] = {}
    for part, unit in zip(found["part"].tolist(), found["first"].tolist(), strict=True):
        if part not in firsts:
            raw = as_path(context.by_part("units", FIRSTS)[part]).read_bytes()
            firsts[part] = np.frombuffer(raw, "<u4")
        at = int(np.searchsorted(firsts[part], unit, side="right")) - 1
        numbers[int(context.offsets[part]) + at] = None
        if len(numbers) == _NAMED:
            break
    names = ids(context, numbers, "units")
    return [names[number] for number in numbers]


def ids(context: DedupContext, numbers: Iterable[int], phase: str) -> dict[int, str]:
    """Reads the ids of documents by their numbers, as a phase wrote them."""
    offsets, paths = context.offsets, context.by_part(phase, IDS)
    wanted = np.unique(np.fromiter(numbers, np.int64))
    parts = np.searchsorted(offsets, wanted, side="right") - 1
    found = {}
    for part in np.unique(parts).tolist():
        count = context.parts[part].documents
        with as_path(paths[part]).open("rb") as file:
            for each in wanted[parts == part].tolist():
                file.seek(8 * (each - int(offsets[part])))
                begin, end = (int(i) for i in np.frombuffer(file.read(16), "<u8"))
                file.seek(8 * (count + 1) + begin)
                found[each] = file.read(end - begin).decode()
    return found


def show(context: DedupContext, tally: Tally, step: str) -> None:
    """Puts the texts of documents that stay beside the samples of removed ones."""
    for name, samples in tally.data["samples"].items():
        for sample in samples if name.partition("\n")[0] == step else ():
            if (number := sample.pop("original", None)) is not None:
                part = int(np.searchsorted(context.offsets, int(number), side="right")) - 1
                unit = int(number) - int(context.offsets[part])
                document = next(itertools.islice(read_part(context.path(part)), unit, None))
                sample["before"] = document.text[:SHOWN]
