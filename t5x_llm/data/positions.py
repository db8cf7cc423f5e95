"""Position of a run in its data: consumed examples, mixture history, skipped ranges.

Two ways of counting, and the arithmetic between them:

* a *stream position* numbers every example the mixture would ever give, skipped or not. History and
  skips are written in stream positions, so adding a skip never renumbers anything.
* a *position* counts the examples consumed, skipped ones left out. It is what a run adds its batch
  sizes to, and what ``Stream.batch`` takes.

Without skips the two are equal.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_llm.core.errors import CheckpointError, DataError

History = tuple[tuple[int, Mapping[str, float]], ...]
Ranges = tuple[tuple[int, int], ...]


ALIKE = 0.02
_known: tuple[History, list[int]] = ((), [])


def _part_starts(history: History) -> list[int]:
    """Returns the stream positions at which the mixture becomes another than it was at the last.

    The history of a run is one object, asked for at every step.
    """
    global _known
    if _known[0] is not history:
        starts: list[int] = []
        last: Mapping[str, float] = {}
        for start, weights in history:
            if not starts or _distance(last, weights) >= ALIKE:
                starts.append(start)
                last = weights
        _known = history, starts
    return _known[1]


def _distance(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Returns the share of rows that come from other sources under ``b`` than under ``a``."""
    totals = sum(a.values()) or 1.0, sum(b.values()) or 1.0
    names = {*a, *b}
    return sum(abs(a.get(n, 0.0) / totals[0] - b.get(n, 0.0) / totals[1]) for n in names) / 2


@dataclasses.dataclass(frozen=True)
class DataState:
    """Data part of a checkpoint: position, mixture history, skipped ranges.

    Attributes:
      position: examples consumed so far.
      history: (stream position, {source: weight}) from which the weights hold; the first is at 0.
        Empty: the weights the stream was built with, from the start.
      skips: [start, stop) ranges of stream positions that are jumped over; sorted, disjoint.
    """

    position: int = 0
    history: History = ()
    skips: Ranges = ()

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON, of which ``from_json`` makes the same state."""
        return {
            "position": self.position,
            "history": [[start, dict(weights)] for start, weights in self.history],
            "skips": [list(skip) for skip in self.skips],
        }

    def part(self, position: int) -> int:
        """Number of the part of the mixture's history that an example belongs to.

        Weights that differ by less than ``ALIKE`` of the rows are of one part.
        """
        at = Skips(self.skips).stream_position(position)
        return bisect.bisect_right(_part_starts(self.history), at)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataState:
        """Returns the state that ``to_json`` wrote.

        Raises:
          CheckpointError: if ``value`` is something else.
        """
        try:
            return cls(
                position=int(value["position"]),
                history=tuple(
                    (int(start), {str(k): float(w) for k, w in weights.items()})
                    for start, weights in value["history"]
                ),
                skips=merge_ranges((int(a), int(b)) for a, b in value["skips"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise CheckpointError(f"The checkpoint's data state cannot be read: {value!r}") from e


def merge_ranges(ranges: Iterable[Sequence[int]]) -> Ranges:
    """Returns the same positions as sorted, disjoint, non-touching [start, stop) ranges.

    Raises:
      DataError: if a range is negative or ends before it starts.
    """
    merged: list[list[int]] = []
    for start, stop in sorted((int(a), int(b)) for a, b in ranges):
        if start < 0 or stop < start:
            raise DataError(
                f"Skip range [{start}, {stop}) of the data stream: expected 0 <= start <= stop."
            )
        if start == stop:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], stop)
        else:
            merged.append([start, stop])
    return tuple((a, b) for a, b in merged)


class Skips:
    """Map from position to stream position, in O(log skips).

    Args:
      ranges: [start, stop) ranges of stream positions.
    """

    def __init__(self, ranges: Iterable[Sequence[int]] = ()):
        self.ranges = merge_ranges(ranges)
        spans = np.array(self.ranges, np.int64).reshape(-1, 2)
        self._starts, self._stops = spans[:, 0], spans[:, 1]
        # Positions jumped over before each range, and all in all.
        self._before = np.concatenate([[0], np.cumsum(self._stops - self._starts)])
        # The position at which each range would have begun.
        self._at = self._starts - self._before[:-1]

    def stream_positions(self, positions: np.ndarray) -> np.ndarray:
        """Returns the stream positions of these positions; int64, any shape."""
        return positions + self._before[np.searchsorted(self._at, positions, side="right")]

    def stream_position(self, position: int) -> int:
        """Returns the stream position of one position."""
        return int(self.stream_positions(np.asarray(position, np.int64)))

    def add(self, position: int, count: int) -> Skips:
        """Returns skips that also leave out the ``count`` examples due from ``position`` on.

        Ranges already skipped among them stay skipped and do not count.
        """
        if count <= 0:
            return self
        start = self.stream_position(position)
        stop = self.stream_position(position + count - 1) + 1
        return Skips([*self.ranges, (start, stop)])

    def before(self, position: int) -> Ranges:
        """Returns the ranges jumped over by the time ``position`` examples are consumed."""
        end = self.stream_position(position)
        return tuple(r for r in self.ranges if r[1] <= end)
