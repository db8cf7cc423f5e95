"""Puts batches on the mesh, prepared in a thread while the device works."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax

from t5x_llm.core.errors import DataError
from t5x_llm.data.positions import DataState
from t5x_llm.data.prefetch import Prefetch
from t5x_llm.parallel import global_batch
from t5x_llm.train.state import Placement


class Position(Protocol):
    """Place of a feed in its data: a checkpoint keeps it, and the loop knows no more of the data.

    Attributes:
      position: examples consumed so far.
    """

    @property
    def position(self) -> int:
        """Counts the examples consumed so far."""

    def part(self, position: int) -> int:
        """Returns the part of its history that an example is of.

        Losses of examples of different parts are not compared.
        """

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON, from which the feed continues."""


class RowSource(Protocol):
    """Source of rows that are a pure function of their position; ``Stream`` is one."""

    def at(self, state: DataState) -> RowSource:
        """Returns the same source with the history and the skips of ``state``."""

    def batch(self, position: int, size: int, rows: slice | None = None) -> Any:
        """Returns some rows of a batch, or all, as NumPy arrays [rows, ...]."""


@dataclasses.dataclass(frozen=True)
class PlacedBatch:
    """One global batch on the mesh.

    Attributes:
      size: its rows.
      batch: a task's batch of ``jax.Array``.
      after: position of the data behind it.
    """

    size: int
    batch: Any
    after: Position


Feed = Callable[[Any], Prefetch[PlacedBatch]]


@dataclasses.dataclass(frozen=True)
class StreamFeed:
    """Endless batches of a stream; each process loads its own rows alone.

    Attributes:
      stream: the rows.
      size_at: position -> rows of the batch that begins there.
      placement: shardings of the batches.
      depth: number of batches ready ahead of the one in use.
      expected: a batch as ``jax.ShapeDtypeStruct``, which all must be like but for their number of
        rows; None checks nothing.
    """

    stream: RowSource
    size_at: Callable[[int], int]
    placement: Placement
    depth: int = 2
    expected: Any = None

    def __call__(self, data: DataState) -> Prefetch[PlacedBatch]:
        """Starts to prepare batches from ``data`` on, with its history and skips.

        Raises:
          DataError: batches are not as expected. Errors of the stream are raised in the thread
            that asks for the batch.
        """
        source, mesh, rules = self.stream.at(data), self.placement.devices, self.placement.rules
        if self.expected is not None:
            _check_alike(source.batch(data.position, 1), self.expected)

        def batches() -> Iterator[PlacedBatch]:
            state = data
            while True:
                position, size = state.position, self.size_at(state.position)

                def load(rows: slice, position: int = position, size: int = size) -> Any:
                    return source.batch(position, size, rows)

                state = dataclasses.replace(state, position=position + size)
                batch = global_batch(load, size, mesh, rules, self.placement.batch)
                yield PlacedBatch(size, batch, state)

        return Prefetch(batches(), self.depth)


def _check_alike(batch: Any, abstract: Any) -> None:
    got, wanted = (
        jax.tree.map(lambda x: (tuple(x.shape[1:]), str(x.dtype)), each)
        for each in (batch, abstract)
    )
    if got != wanted:
        raise DataError(f"The data gives rows of {got}, where the task expects {wanted}.")
