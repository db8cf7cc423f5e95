"""Search for long repeats at any place of a text, by a suffix array (Lee et al. 2022)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from t5x_llm.data.clean.dedup.context import DedupContext, stem
from t5x_llm.data.clean.dedup.dedup_config import Suffix
from t5x_llm.data.clean.document import Answer, Document, Drop
from t5x_llm.data.clean.jobs import REMOVED
from t5x_llm.data.clean.parts import CorpusPart, LineWriter, PartWriter, read_part
from t5x_llm.data.clean.phases import CleanTask, fingerprint
from t5x_llm.data.clean.tally import Tally

STEP, EMPTIED = "suffix", "nothing but repeats"
# Never a byte of UTF-8: no repeat holds it.
_SEPARATOR = b"\xff"


def tasks(context: DedupContext, mark: str) -> list[CleanTask]:
    """Returns the tasks of the phase, one for the consecutive parts of a window."""
    suffix = context.dedup.suffix
    assert suffix is not None
    found: list[list[int]] = []
    held = 0
    for number, part in enumerate(context.parts):
        if not found or held + part.bytes > suffix.window_bytes:
            found.append([])
            held = 0
        found[-1].append(number)
        held += part.bytes
    return [
        CleanTask(
            stem(context.parts[numbers[0]]),
            fingerprint(mark, numbers),
            sum(context.parts[number].bytes for number in numbers),
            tuple(numbers),
        )
        for numbers in found
    ]


def cut(context: DedupContext, numbers: tuple[int, ...], base: str) -> dict[str, Any]:
    """Writes parts without what repeats within a window of them.

    Returns:
      ``parts`` and the ``tally``.
    """
    suffix = context.dedup.suffix
    assert suffix is not None
    tally = Tally()
    parts: list[CorpusPart] = []
    documents = ((n, d) for n in numbers for d in read_part(context.path(n)))
    writer, current = None, -1
    with LineWriter(base + REMOVED) as listed:
        for number, document, text in _cut(documents, suffix):
            if number != current:
                parts += writer.close() if writer else []
                current, name = number, stem(context.parts[number])
                writer = PartWriter(context.folder, name, context.clean.compression, None)
            answer: Answer = document
            if text != document.text:
                answer = document.with_text(text) if text.strip() else Drop(EMPTIED)
            tally.answered(STEP, document, answer)
            if isinstance(answer, Drop):
                listed.write(id=document.id, step=STEP, reason=answer.reason)
                continue
            assert writer is not None
            writer.write(answer)
            tally.kept(answer)
    parts += writer.close() if writer else []
    return {"parts": [dataclasses.astuple(part) for part in parts], "tally": tally.to_json()}


_Numbered = tuple[int, Document]


def _cut(documents: Iterator[_Numbered], suffix: Suffix) -> Iterator[tuple[int, Document, str]]:
    """Yields the number of the part, the document, and the text that is left of it."""
    for window in _windows(documents, suffix.window_bytes):
        texts = without_repeats([d.text for _, d in window], suffix.length)
        for (number, document), text in zip(window, texts, strict=True):
            yield number, document, text


def _windows(documents: Iterator[_Numbered], most: int) -> Iterator[list[_Numbered]]:
    held: list[_Numbered] = []
    size = 0
    for number, document in documents:
        length = len(document.text.encode())
        if held and size + length > most:
            yield held
            held, size = [], 0
        held.append((number, document))
        size += length
    if held:
        yield held


def without_repeats(texts: Sequence[str], length: int) -> list[str]:
    """Returns the texts without stretches of at least ``length`` bytes that stand earlier in them.

    If a repeat overlaps the stretch that it repeats, only the bytes beyond are cut.
    """
    raw = [text.encode() for text in texts]
    joined = _SEPARATOR.join(raw) + _SEPARATOR
    data = np.frombuffer(bytearray(joined), np.uint8)  # the library wants it writable
    repeated = _repeated(data, length)
    if not repeated.any():
        return list(texts)
    found, begin = [], 0
    # A character goes if all its bytes do.
    starts = np.flatnonzero((data & 0xC0) != 0x80)
    whole = np.logical_and.reduceat(repeated, starts)
    repeated = np.repeat(whole, np.diff(np.append(starts, len(data))))
    for text, part in zip(texts, raw, strict=True):
        mask = repeated[begin : begin + len(part)]
        kept = data[begin : begin + len(part)][~mask]
        found.append(kept.tobytes().decode() if mask.any() else text)
        begin += len(part) + 1
    return found


def _repeated(data: np.ndarray, length: int) -> np.ndarray:
    """Returns [n] bool: True for bytes [n] uint8 in a repeat of at least ``length`` bytes."""
    import pydivsufsort

    order = pydivsufsort.divsufsort(data)
    common = pydivsufsort.kasai(data, order)  # of each suffix with the next in order
    n = len(data)
    # Runs of suffixes that share their first ``length`` bytes.
    joined = np.zeros(n + 1, bool)
    np.greater_equal(common[: n - 1], length, out=joined[1:n])
    del common
    places = np.flatnonzero(joined[:-1] | joined[1:])
    if not len(places):
        return np.zeros(n, bool)
    run = np.cumsum(~joined[places], dtype=np.int32) - 1
    at = order[places].astype(np.int32)
    del order, places, joined
    earliest = np.full(run[-1] + 1, n, np.int32)
    np.minimum.at(earliest, run, at)
    first = earliest[run]
    ends_of_texts = np.flatnonzero(data == _SEPARATOR[0]).astype(np.int32)
    repeats = at != first
    repeats &= ends_of_texts[np.searchsorted(ends_of_texts, at)] >= at + length
    change = np.zeros(n + 1, np.int32)
    np.add.at(change, np.maximum(at, first + length)[repeats], 1)
    np.add.at(change, at[repeats] + length, -1)
    return np.cumsum(change[:n], out=change[:n]) > 0
