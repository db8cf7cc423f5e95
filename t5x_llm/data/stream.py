"""The training stream: batches as a pure function of (stores, history, skips, seed, position).

Every source is shuffled row by row and repeated without end through Grain's index-addressed
datasets, each epoch in an order of its own; ``mixing`` says which source a position belongs to and
how often that source came before. Nothing is iterated, so position 10^9 costs what position 0
costs, and any process can make any rows of any batch.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from t5x_llm.core.errors import ConfigError, DataError, nearest
from t5x_llm.data.batch import Batch
from t5x_llm.data.bins import PLAIN, Order
from t5x_llm.data.blending import Blend
from t5x_llm.data.mixing import Proportions, check_weights, proportions
from t5x_llm.data.positions import DataState, History, Skips
from t5x_llm.data.row_objective import RowObjective
from t5x_llm.data.shuffled import ShuffledSource
from t5x_llm.data.store import Provenance, TokenStore


class RowPiece(NamedTuple):
    """Piece of one document in a row; the fields are those of ``DocumentSpan``."""

    source: str
    document: int
    start: int
    stop: int
    column: int
    epoch: int


@dataclasses.dataclass(frozen=True)
class DocumentSpan:
    """Span of one document in a row.

    Attributes:
      source: name of the source.
      document: index in the source's training split.
      provenance: file and line it was read from.
      start, stop: the tokens of the document that the row reads, [start, stop).
      column: where in the row they begin; in the joined text of the row, if an objective changes
        its length.
      epoch: how many times the source had been read in full before.
    """

    source: str
    document: int
    provenance: Provenance
    start: int
    stop: int
    column: int
    epoch: int


@dataclasses.dataclass(frozen=True)
class Consumed:
    """Amount of one source that a run has read.

    Attributes:
      examples: rows, skipped ones left out.
      tokens: about as many tokens read; exact after whole epochs.
      epochs: rows of the source passed, skipped ones included, over its rows.
    """

    examples: int
    tokens: int
    epochs: float


class Stream:
    """Rows of packed documents by position.

    Args:
      stores: the token store of each source, in the order that ``Batch.source`` counts.
      weights: share of rows of each source, any scale; unused if ``history`` is given.
      length: T, tokens in a row.
      seed: of the shuffles.
      packing: one of ``packing.PACKINGS``.
      history: (stream position, weights) from which each set of weights holds, the first at 0. A
        source goes on where it was when weights change.
      skips: [start, stop) ranges of stream positions to jump over.
      objective: objective of the rows, from ``make_row_objective`` for ``length``;
        None for next-token prediction.
      orders: bins and curriculum of each source, by name; none for those that are not there.

    Attributes:
      sources: names, as ``Batch.source`` indexes them.
      blend: blend that the history was planned by, see ``planned``.

    Raises:
      ConfigError: weights that are negative, all zero, or of unknown sources; T below 2.
      DataError: a source without a row; a history that does not begin at 0 or does not ascend.
    """

    def __init__(
        self,
        stores: Mapping[str, TokenStore],
        weights: Mapping[str, float],
        length: int,
        seed: int = 0,
        packing: str = "concat",
        *,
        history: History = (),
        skips: Iterable[Sequence[int]] = (),
        objective: RowObjective | None = None,
        orders: Mapping[str, Order] | None = None,
    ):
        self.sources = tuple(stores)
        self.length, self.seed, self.packing, self.objective = length, seed, packing, objective
        orders = orders or {}
        self._sources = {
            name: ShuffledSource(
                *(name, store.train, packing, length, seed, objective, orders.get(name, PLAIN))
            )
            for name, store in stores.items()
        }
        self._follow(tuple(history) or ((0, dict(weights)),), Skips(skips))
        self.blend = Blend(self.sources, ((0, self.history[-1][1]),))

    def _follow(self, history: History, skips: Skips) -> None:
        starts = [start for start, _ in history]
        if starts[0] != 0 or starts != sorted(set(starts)):
            raise DataError(
                f"Mixture history at stream positions {starts}: expected 0 first, then ascending."
            )
        for _, weights in history:
            for name in weights:
                if name not in self._sources:
                    near = nearest(name, self.sources)
                    raise ConfigError(
                        "Mixture.rates",
                        name,
                        f"one of the sources {', '.join(self.sources)}",
                        f"Did you mean {near!r}?" if near else "",
                    )
            check_weights("Mixture.rates", weights)
        self.history, self._skips = history, skips
        self._starts = np.array(starts, np.int64)
        self._parts: list[Proportions] = [proportions(weights) for _, weights in history]
        # Rows of each source passed before each part of the history.
        self._passed = [dict.fromkeys(self.sources, 0)]
        for part, start, stop in zip(self._parts, starts, starts[1:], strict=False):
            counts = part.counts(stop - start)
            last = self._passed[-1]
            self._passed.append({n: last[n] + counts.get(n, 0) for n in self.sources})

    @property
    def skips(self) -> tuple[tuple[int, int], ...]:
        """The [start, stop) ranges of stream positions jumped over."""
        return self._skips.ranges

    @property
    def weights(self) -> dict[str, float]:
        """The last shares of the history by source; they add up to 1."""
        last = self.history[-1][1]
        total = sum(last.values())
        return {name: last.get(name, 0.0) / total for name in self.sources}

    @property
    def readers(self) -> Mapping[str, ShuffledSource]:
        """The rows of each source, by name."""
        return self._sources

    @property
    def rows(self) -> dict[str, int]:
        """Rows in one epoch of each source."""
        return {name: source.rows for name, source in self._sources.items()}

    @property
    def efficiency(self) -> dict[str, float]:
        """Share of places that hold a token, by source."""
        return {name: source.efficiency for name, source in self._sources.items()}

    @property
    def fingerprint(self) -> str:
        """Hash of everything but history, skips and position: equal streams give equal rows."""
        identity = {
            "stores": {n: s.split.store.content for n, s in sorted(self._sources.items())},
            "length": self.length,
            "seed": self.seed,
            "packing": self.packing,
        }
        if self.objective is not None:
            identity["objective"] = self.objective.identity
        coded = {n: s.split.store for n, s in sorted(self._sources.items()) if s.split.coded}
        if coded:
            identity["weights"] = {n: store.weights[:4].tolist() for n, store in coded.items()}
        orders = {n: s.order for n, s in sorted(self._sources.items()) if s.order != PLAIN}
        if orders:
            identity["orders"] = {n: dataclasses.asdict(order) for n, order in orders.items()}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def state(self, position: int = 0) -> DataState:
        """Returns the state that a checkpoint holds at ``position``."""
        return DataState(position, self.history, self.skips)

    def at(self, state: DataState) -> Stream:
        """Returns the same stream with the history and the skips of ``state``."""
        return self._changed(state.history or self.history, Skips(state.skips))

    def skip(self, position: int, count: int) -> Stream:
        """Returns the stream that also skips the ``count`` examples due from ``position`` on."""
        return self._changed(self.history, self._skips.add(position, count))

    def reweight(self, position: int, weights: Mapping[str, float]) -> Stream:
        """Returns the stream with these weights from ``position`` on; the past stays as it is.

        Changes planned at or after ``position`` are dropped.
        """
        start = self._skips.stream_position(position)
        kept = tuple(entry for entry in self.history if entry[0] < start)
        return self._changed((*kept, (start, dict(weights))), self._skips)

    def planned(self, blend: Blend) -> Stream:
        """Returns the stream with the mixtures of a blend from its beginning."""
        stream = self._changed(blend.history(), self._skips)
        stream.blend = blend
        return stream

    def _changed(self, history: History, skips: Skips) -> Stream:
        stream = object.__new__(Stream)
        stream.__dict__.update(self.__dict__)
        stream._follow(history, skips)
        return stream

    def _locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the index of the source [n] and the source's ordinal [n], for positions [n]."""
        at = self._skips.stream_positions(np.asarray(positions, np.int64))
        part_of = np.searchsorted(self._starts, at, side="right") - 1
        source = np.empty(len(at), np.int64)
        ordinal = np.empty(len(at), np.int64)
        for p in np.unique(part_of):
            here = part_of == p
            part = self._parts[p]
            local, rank = part.locate(at[here] - self._starts[p])
            index = np.array([self.sources.index(name) for name in part.names])
            passed = np.array([self._passed[p][name] for name in part.names])
            source[here], ordinal[here] = index[local], passed[local] + rank
        return source, ordinal

    def section(self, position: int, least: int = 0) -> str:
        """Returns a name of the bins that the sources stand in at ``position``; '' without bins.

        Args:
          position: examples consumed before.
          least: bins of fewer rows are not told from each other.
        """
        at = self._skips.stream_position(position)
        part = int(np.searchsorted(self._starts, at, side="right")) - 1
        counts = self._parts[part].counts(at - int(self._starts[part]))
        names = []
        for name, source in self._sources.items():
            bins = source.order.bins
            if bins > 1 and source.rows >= bins * least:
                passed = self._passed[part][name] + counts.get(name, 0)
                names.append(str(source.section(passed)))
        return ".".join(names)

    def batch(self, position: int, size: int, rows: slice | None = None) -> Batch:
        """Returns examples ``position`` to ``position + size``, or those ``rows`` of them.

        Args:
          position: examples consumed before; any size.
          size: B of the global batch.
          rows: the rows of it that are wanted; all of them if None.

        Returns:
          A Batch of NumPy arrays, the same whoever asks for it.
        """
        wanted = np.arange(size, dtype=np.int64)[rows if rows is not None else slice(None)]
        source, ordinal = self._locate(position + wanted)
        arrays: dict[str, np.ndarray] = {}
        for index in np.unique(source):
            here = np.flatnonzero(source == index)
            part = self._sources[self.sources[index]]
            for name, value in part.arrays(ordinal[here]).items():
                if name not in arrays:
                    arrays[name] = np.zeros((len(wanted), *value.shape[1:]), value.dtype)
                arrays[name][here] = value
        if not arrays:
            raise DataError(f"No rows in {rows} of a batch of {size}.")
        if self.objective is not None:
            return self.objective.batch(arrays, source.astype(np.int32))
        return Batch(**arrays, source=source.astype(np.int32))

    def stream_position(self, position: int) -> int:
        """Returns the stream position of the example at ``position``, skipped ones counted."""
        return self._skips.stream_position(position)

    def documents(self, position: int) -> list[DocumentSpan]:
        """Returns the spans of documents in the row at ``position``, and where each came from."""
        return [
            DocumentSpan(
                source=piece.source,
                document=piece.document,
                provenance=self._sources[piece.source].split.provenance(piece.document),
                start=piece.start,
                stop=piece.stop,
                column=piece.column,
                epoch=piece.epoch,
            )
            for piece in self.pieces(position)
        ]

    def pieces(self, position: int) -> list[RowPiece]:
        """Returns the pieces of documents in the row at ``position``; reads nothing."""
        (index,), (ordinal,) = self._locate(np.array([position]))
        part = self._sources[self.sources[index]]
        spans, epoch = part.spans(int(ordinal))
        offsets = part.split.offsets
        column, pieces = 0, []
        for start, length in zip(spans.start.tolist(), spans.length.tolist(), strict=True):
            document = int(np.searchsorted(offsets, start, side="right")) - 1
            first = start - int(offsets[document])
            pieces.append(RowPiece(part.name, document, first, first + length, column, epoch))
            column += length
        return pieces

    def _passed_at(self, stream_position: int) -> dict[str, int]:
        """Returns the rows of each source before ``stream_position``, skipped ones included."""
        p = bisect.bisect_right(self._starts.tolist(), stream_position) - 1
        counts = self._parts[p].counts(stream_position - int(self._starts[p]))
        return {n: self._passed[p][n] + counts.get(n, 0) for n in self.sources}

    def consumed(self, position: int) -> dict[str, Consumed]:
        """Returns the amount of each source in the first ``position`` examples, in O(1)."""
        passed = self._passed_at(self._skips.stream_position(position))
        consumed = dict(passed)
        for start, stop in self._skips.before(position):
            first, last = self._passed_at(start), self._passed_at(stop)
            for name in consumed:
                consumed[name] -= last[name] - first[name]
        return {
            name: Consumed(
                examples=consumed[name],
                tokens=round(consumed[name] * source.tokens),
                epochs=source.epochs(passed[name]),
            )
            for name, source in self._sources.items()
        }
