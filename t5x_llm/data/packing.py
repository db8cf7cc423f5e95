"""Packing of documents into rows of T tokens: a plan turns row numbers into spans of documents.

``concat``: the documents of a source joined in store order and cut every T tokens. Row i reads
tokens [iT, iT + T) and predicts [iT + 1, iT + T + 1): a document cut at the row's edge still
predicts its next token. The last token of a document (its end token) predicts nothing. Only the
last row of a source is padded.

``whole``: every document in one piece, longer ones cut every T predicted tokens; pieces share rows
so that little is padded. A document of n tokens takes n - 1 places: its end token is predicted, not
read. Pieces are matched to rows by the histogram of their lengths, longest first, each into the
fullest row that takes it (Krell et al. 2021, "Efficient sequence packing without
cross-contamination", arXiv:2107.02027, best fit): the plan costs one sort of the lengths plus about
T steps, whatever the number of documents.

``similar``: pieces as ``whole`` has them, sorted by length and spliced, so that a row holds pieces
of nearly one length (Colossal-LLaMA-2). A row takes the longest piece that is left and fits, again
and again: runs of one length first, then what fills the rest.

All find a row in O(log n). Row contents never depend on anything but lengths and T.

Objectives that read a document otherwise (``denoisers``) say so by a ``Reading``.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from t5x_llm.core.errors import check_choice, check_number
from t5x_llm.data.store import Split

PACKINGS = ("concat", "whole", "similar")


@dataclasses.dataclass(frozen=True)
class Spans:
    """Spans of documents, row after row.

    Attributes:
      row: [n] which of the asked rows each belongs to, ascending.
      start: [n] first token read, index into the split's flat tokens.
      length: [n] tokens read, at least 1.
      stop: [n] end of the document in the flat tokens: no target at or beyond it.
    """

    row: np.ndarray
    start: np.ndarray
    length: np.ndarray
    stop: np.ndarray


@dataclasses.dataclass(frozen=True)
class Reading:
    """Part of a document that a plan reads, and the places that it takes.

    Attributes:
      lead: tokens left out at a document's beginning; ``whole`` only.
      trail: tokens left out at its end, for ``whole``; at the end of the source, for ``concat``.
      places: [longest + 1] ints, the places that a piece of so many tokens takes in a row; None if
        every token takes one. It may not fall, and a piece has at most ``longest`` tokens.
    """

    lead: int = 0
    trail: int = 0
    places: np.ndarray | None = None


NEXT_TOKEN = Reading(trail=1)  # the last is a target only


class Packing(Protocol):
    """Plan of one source's rows for one T."""

    @property
    def tokens(self) -> int:
        """Tokens read in one epoch."""

    def __len__(self) -> int:
        """Rows in one epoch."""

    @property
    def efficiency(self) -> float:
        """Share of places that hold a token."""

    def spans(self, rows: np.ndarray) -> Spans:
        """Returns the pieces in these rows [n], in order."""


def make_packing(name: str, split: Split, length: int, reading: Reading = NEXT_TOKEN) -> Packing:
    """Returns the plan called ``name`` over a split, for rows of ``length`` places.

    Raises:
      ConfigError: unknown name, or a length below 2.
    """
    return pack(name, split.offsets, length, reading)


def pack(name: str, offsets: np.ndarray, length: int, reading: Reading = NEXT_TOKEN) -> Packing:
    """Returns the plan of ``make_packing`` for documents at these ``offsets`` [documents + 1]."""
    check_choice("Data.packing", name, PACKINGS)
    check_number("sequence_length", length, low=2, integer=True)
    if name == "concat":
        longest = length if reading.places is None else len(reading.places) - 1
        return Concat(offsets, longest, reading.trail)
    return Whole(offsets, length, reading, _match if name == "whole" else _splice)


class Concat:
    """Plan ``concat``: the documents joined in order and cut every ``length`` tokens.

    Args:
      offsets: [documents + 1] of the split.
      length: tokens that a row reads.
      trail: tokens at the very end that are not read; 1 if the last is a target only.
    """

    def __init__(self, offsets: np.ndarray, length: int, trail: int = 1):
        self._offsets, self._length = offsets, length
        self._places = max(int(offsets[-1]) - trail, 0)

    @property
    def tokens(self) -> int:
        """Tokens read in one epoch."""
        return self._places

    def __len__(self) -> int:
        return -(-self._places // self._length)

    @property
    def efficiency(self) -> float:
        """Share of places that hold a token; below 1 only by the last row's padding."""
        return self._places / (len(self) * self._length) if self._places else 0.0

    def spans(self, rows: np.ndarray) -> Spans:
        """Returns the pieces in these rows."""
        begin = np.asarray(rows, np.int64) * self._length
        end = np.minimum(begin + self._length, self._places)
        first = np.searchsorted(self._offsets, begin, side="right") - 1
        last = np.searchsorted(self._offsets, end, side="left") - 1
        count = last - first + 1
        row = np.repeat(np.arange(len(begin)), count)
        document = np.repeat(first, count) + _ranks(count)
        start = np.maximum(self._offsets[document], begin[row])
        stop = self._offsets[document + 1]
        return _without_empty(Spans(row, start, np.minimum(stop, end[row]) - start, stop))


Groups = list[tuple[int, tuple[tuple[int, int], ...]]]


class Whole:
    """Plan ``whole`` or ``similar``: pieces of documents matched to rows by their sizes.

    Args:
      offsets: [documents + 1] of the split.
      length: T.
      reading: of a document.
      match: pieces to rows, by the histogram of their sizes; best fit for ``whole``.
    """

    def __init__(
        self,
        offsets: np.ndarray,
        length: int,
        reading: Reading = NEXT_TOKEN,
        match: Callable[[np.ndarray, int], Groups] | None = None,
    ):
        places = np.arange(length + 1) if reading.places is None else reading.places
        longest = len(places) - 1
        tokens = np.maximum(np.diff(offsets) - reading.lead - reading.trail, 0)
        cuts = -(-tokens // longest)
        document = np.repeat(np.arange(len(tokens)), cuts)
        begin = _ranks(cuts) * longest
        tokens = np.minimum(tokens[document] - begin, longest)
        size = places[tokens]
        order = np.argsort(-size, kind="stable")
        self._start = (offsets[document] + reading.lead + begin)[order]
        self._tokens = tokens[order]
        self._stop = offsets[document + 1][order]
        histogram = np.bincount(size, minlength=length + 1)
        # Pieces of size s stand at [first[s], first[s] + histogram[s]) of the sorted pieces.
        first = np.cumsum(histogram[::-1])[::-1] - histogram
        self._groups = (match or _match)(histogram, length)
        self._group_rows = np.cumsum([0] + [rows for rows, _ in self._groups])
        self._pieces = [
            np.array([first[s] + r for s, r in entries], np.int64) for _, entries in self._groups
        ]
        self._used = int(size.sum())
        self._length = length

    @property
    def tokens(self) -> int:
        """Tokens read in one epoch."""
        return int(self._tokens.sum())

    def __len__(self) -> int:
        return int(self._group_rows[-1])

    @property
    def efficiency(self) -> float:
        """Share of places that hold a token."""
        return self._used / (len(self) * self._length) if len(self) else 0.0

    def spans(self, rows: np.ndarray) -> Spans:
        """Returns the pieces in these rows."""
        rows = np.asarray(rows, np.int64)
        groups = np.searchsorted(self._group_rows, rows, side="right") - 1
        ranks = rows - self._group_rows[groups]
        pieces = [self._pieces[g] + k for g, k in zip(groups.tolist(), ranks, strict=True)]
        row = np.repeat(np.arange(len(rows)), [len(p) for p in pieces])
        piece = np.concatenate(pieces) if pieces else np.empty(0, np.int64)
        return Spans(row, self._start[piece], self._tokens[piece], self._stop[piece])


def _match(histogram: np.ndarray, length: int) -> Groups:
    """Matches pieces to rows, longest first, each into the fullest row that takes it (best fit).

    Returns:
      Groups of equal rows: (rows, ((size, rank of its first piece among that size), ...)). The
      k-th row of a group takes, for each entry, the piece of that size with rank first + k.
    """
    open_groups: dict[int, list[tuple[int, tuple[tuple[int, int], ...]]]] = {}
    spaces: list[int] = []  # sorted, the free places for which a group is open
    done: Groups = []

    def keep(space: int, rows: int, entries: tuple[tuple[int, int], ...]) -> None:
        if space == 0:
            done.append((rows, entries))
            return
        if space not in open_groups:
            open_groups[space] = []
            bisect.insort(spaces, space)
        open_groups[space].append((rows, entries))

    for size in range(length, 0, -1):
        left, rank = int(histogram[size]), 0
        while left:
            at = bisect.bisect_left(spaces, size)
            if at == len(spaces):
                keep(length - size, left, ((size, rank),))
                break
            space = spaces[at]
            rows, entries = open_groups[space].pop()
            if not open_groups[space]:
                del open_groups[space], spaces[at]
            take = min(rows, left)
            keep(space - size, take, (*entries, (size, rank)))
            if take < rows:
                keep(space, rows - take, tuple((s, r + take) for s, r in entries))
            left, rank = left - take, rank + take
    for space in spaces:
        done.extend(open_groups[space])
    return done


def _splice(histogram: np.ndarray, length: int) -> Groups:
    """Matches pieces to rows for ``similar``: a row takes the longest piece left while one fits.

    Equal rows are made at once, as many as the pieces allow. Returns groups as ``_match`` does.
    """
    left = histogram.copy()
    left[0] = 0
    sizes = np.flatnonzero(left).tolist()  # ascending, those that are left
    taken = np.zeros_like(left)
    done: Groups = []
    while sizes:
        row: list[tuple[int, int]] = []  # (size, how many of it)
        space, at = length, len(sizes)
        while space and (at := bisect.bisect_right(sizes, space, 0, at)):
            at -= 1
            size = sizes[at]
            count = min(int(left[size]), space // size)
            row.append((size, count))
            space -= size * count
        rows = min(int(left[size]) // count for size, count in row)
        entries = []
        for size, count in row:
            entries += [(size, int(taken[size]) + rows * k) for k in range(count)]
            taken[size] += rows * count
            left[size] -= rows * count
            if not left[size]:
                del sizes[bisect.bisect_left(sizes, size)]
        done.append((rows, tuple(entries)))
    return done


def read_spans(
    split: Split, spans: Spans, read: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads the tokens of spans, each followed by the next one in the store, as one array.

    Args:
      split: split that is read.
      spans: at least one span.
      read: reads another array of the split instead of its tokens.

    Returns:
      (flat, index in it of the first token of each span).
    """
    # One read for spans that follow each other in the store; one token more, the last target.
    end = spans.start + spans.length
    joined = (spans.row[1:] == spans.row[:-1]) & (spans.start[1:] == end[:-1])
    head = np.flatnonzero(np.concatenate([[True], ~joined]))
    tail = np.concatenate([head[1:], [len(end)]]) - 1
    begin, finish = spans.start[head], np.minimum(end[tail] + 1, split.tokens)
    flat = (read or split.read)(begin, finish)
    run = np.cumsum(np.concatenate([[False], ~joined]))
    size = finish - begin
    return flat, (np.cumsum(size) - size)[run] + spans.start - begin[run]


def assemble(split: Split, spans: Spans, rows: int, length: int) -> dict[str, np.ndarray]:
    """Returns the arrays [rows, length] of a ``Batch`` but ``source``, for spans of one split."""
    shape = (rows, length)
    arrays = {
        name: np.zeros(shape, np.float32 if name == "loss_mask" else np.int32)
        for name in ("tokens", "targets", "positions", "segment_ids", "loss_mask")
    }
    if not len(spans.row):
        return arrays
    flat, base = read_spans(split, spans)
    place = _ranks(spans.length)
    count = spans.length
    row_first = np.searchsorted(spans.row, spans.row, side="left")
    before = np.cumsum(count) - count
    column = np.repeat(before - before[row_first], count) + place
    row = np.repeat(spans.row, count)
    source = np.repeat(base, count) + place
    target = np.repeat(spans.start, count) + place + 1
    counted = target < np.repeat(spans.stop, count)
    following = flat[np.minimum(source + 1, len(flat) - 1)]
    arrays["tokens"][row, column] = flat[source]
    arrays["targets"][row, column] = np.where(counted, following, 0)
    arrays["positions"][row, column] = place
    arrays["segment_ids"][row, column] = np.repeat(np.arange(len(count)) - row_first + 1, count)
    weight: Any = counted
    if split.masked:
        mask, _ = read_spans(split, spans, split.read_weights)
        weight = counted * mask[np.minimum(source + 1, len(flat) - 1)]
    arrays["loss_mask"][row, column] = weight
    return arrays


def _ranks(counts: np.ndarray) -> np.ndarray:
    """Returns 0, 1, ..., counts[0] - 1, 0, 1, ..., counts[1] - 1, ..."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def _without_empty(spans: Spans) -> Spans:
    keep = spans.length > 0
    if keep.all():
        return spans
    return Spans(spans.row[keep], spans.start[keep], spans.length[keep], spans.stop[keep])
