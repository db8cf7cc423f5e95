"""A source cut into bins of documents, each packed on its own and read one after another.

Colossal-LLaMA-2 cuts every category into 10 bins and trains on buckets of one bin of each. Here a
source's epoch goes through its bins in order, rows shuffled inside each (``ShuffledRows``), and the
mixture deals the sources out exactly: where all sources take the same time for an epoch, as with
``proportional`` rates, the k-th tenth of the stream is the k-th bin of every source.

A bin is a stretch of documents in the order of the store, which is that of the input's files; a
curriculum first orders the documents by their length or score. Edges are where bins have equal
rows, to one row or one document: equal numbers of documents, of which the first of a curriculum by
length have least tokens, would put a bin's rows beside another bin's of the other sources.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t5x_llm.core.errors import DataError
from t5x_llm.data.packing import NEXT_TOKEN, Packing, Reading, Spans, make_packing, pack
from t5x_llm.data.store import Split


@dataclasses.dataclass(frozen=True)
class Order:
    """Order in which a source is read.

    Attributes:
      bins: number of bins that its documents are cut into.
      curriculum: one of ``sources.CURRICULA``.
      tokens: tokens of the part that is read, again and again; None for all.
      epochs: the same part as a share of all tokens; None for all.
    """

    bins: int = 1
    curriculum: str = ""
    tokens: int | None = None
    epochs: float | None = None

    def part(self, plan: Packing) -> float:
        """Returns the share of a plan's rows that is read; 1 or more for all."""
        if self.tokens is not None:
            return self.tokens / max(plan.tokens, 1)
        return 1.0 if self.epochs is None else self.epochs


PLAIN = Order()
_PASSES = 4  # of packing, to find the edges


def make_plan(
    packing: str, split: Split, length: int, reading: Reading = NEXT_TOKEN, order: Order = PLAIN
) -> Packing:
    """Returns the plan of ``packing.make_packing`` for a split, one plan a bin if there are bins.

    Raises:
      DataError: a curriculum by score of a store that has none.
    """
    if order.bins == 1:
        return make_packing(packing, split, length, reading)
    return Binned(packing, split, length, reading, order)


def sort_key(split: Split, curriculum: str) -> np.ndarray:
    """Returns the values [documents] that a curriculum sorts by, ascending.

    Raises:
      DataError: the store has no scores.
    """
    if curriculum in ("shortest", "longest"):
        key = np.diff(split.offsets)
    elif split.scored:
        key = split.scores
    else:
        raise DataError(
            f"Token store {split.store.path} has no scores, which Source.curriculum = "
            f"{curriculum!r} asks for. Set Source.score and run `t5x-llm prepare`."
        )
    return -key if curriculum in ("longest", "highest") else key


class Binned:
    """Plans of all bins of a source, read one after another as one plan.

    Attributes:
      starts: [bins + 1] first row of each bin, and the number of rows.
    """

    def __init__(self, packing: str, split: Split, length: int, reading: Reading, order: Order):
        self._offsets = split.offsets
        self._documents: np.ndarray | None = None
        if order.curriculum:
            self._documents = np.argsort(sort_key(split, order.curriculum), kind="stable")
        ends = self._bin_offsets(0, len(split))
        edges = np.linspace(0, ends[-1], order.bins + 1)
        least = np.inf
        for _ in range(_PASSES):
            cuts = _nearest(ends, edges)
            # Each bin is packed as if its documents, in their order, were all there is.
            bins = [
                (o, pack(packing, o, length, reading))
                for o in map(self._bin_offsets, cuts, cuts[1:])
            ]
            starts = np.cumsum([0] + [len(plan) for _, plan in bins])
            missing = np.linspace(0, starts[-1], order.bins + 1) - starts
            if (worst := np.abs(missing).max()) < least:
                least, self._cuts, self._bins, self.starts = worst, cuts, bins, starts
            if worst <= 1:
                break
            edges = np.sort(np.clip(edges + missing * ends[-1] / max(starts[-1], 1), 0, ends[-1]))

    def _bin_offsets(self, first: int, stop: int) -> np.ndarray:
        """Returns the offsets [documents + 1] of one bin's documents, from 0."""
        if self._documents is None:
            return self._offsets[first : stop + 1] - self._offsets[first]
        chosen = self._documents[first:stop]
        return np.cumsum(np.concatenate([[0], self._offsets[chosen + 1] - self._offsets[chosen]]))

    @property
    def tokens(self) -> int:
        """Tokens read in one epoch."""
        return sum(plan.tokens for _, plan in self._bins)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def efficiency(self) -> float:
        """Share of places that hold a token."""
        used = sum(plan.efficiency * len(plan) for _, plan in self._bins)
        return used / len(self) if len(self) else 0.0

    def spans(self, rows: np.ndarray) -> Spans:
        """Returns the pieces in these rows."""
        rows = np.asarray(rows, np.int64)
        bins = np.searchsorted(self.starts, rows, side="right") - 1
        found = []
        for b in np.unique(bins).tolist():
            here = np.flatnonzero(bins == b)
            lying, plan = self._bins[b]
            spans = plan.spans(rows[here] - self.starts[b])
            local = np.searchsorted(lying, spans.start, side="right") - 1
            document = self._cuts[b] + local
            if self._documents is not None:
                document = self._documents[document]
            start = self._offsets[document] + spans.start - lying[local]
            stop = self._offsets[document + 1]
            found.append(Spans(here[spans.row], start, spans.length, stop))
        if len(found) == 1:
            return found[0]
        parts = [np.concatenate(part) for part in zip(*map(_columns, found), strict=True)]
        by_row = np.argsort(parts[0], kind="stable")
        return Spans(*(part[by_row] for part in parts))


def _nearest(ends: np.ndarray, edges: np.ndarray) -> list[int]:
    """Returns, for each of ``edges``, the index of the nearest of ``ends``, which ascend."""
    after = np.clip(np.searchsorted(ends, edges), 1, max(len(ends) - 1, 1))
    if len(ends) < 2:
        return [0] * len(edges)
    found = np.where(edges - ends[after - 1] < ends[after] - edges, after - 1, after)
    found[0], found[-1] = 0, len(ends) - 1
    return [int(at) for at in found]


def _columns(spans: Spans) -> tuple[np.ndarray, ...]:
    return spans.row, spans.start, spans.length, spans.stop
