"""Batches on the mesh, prepared in a thread while the device works."""

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
    """Where a feed stands: what a checkpoint keeps of it, and all that the loop knows of data.

    Attributes:
      position: examples consumed so far.
    """

    @property
    def position(self) -> int:
        """Examples consumed so far."""

    def part(self, position: int) -> int:
        """Which part of its history an example is of: losses of two parts are not compared."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, from which the feed continues."""


class Rows(Protocol):
    """What a feed reads: rows as a pure function of their position; ``Stream`` is one."""

    def at(self, state: DataState) -> Rows:
        """The same with the history and the skips of ``state``."""

    def batch(self, position: int, size: int, rows: slice | None = None) -> Any:
        """Some rows of a batch, or all, as NumPy arrays [rows, ...]."""


@dataclasses.dataclass(frozen=True)
class Fed:
    """One global batch on the mesh.

    Attributes:
      size: its rows.
      batch: a task's batch of ``jax.Array``.
      after: where the data stands behind it.
    """

    size: int
    batch: Any
    after: Position


Feed = Callable[[Any], Prefetch[Fed]]


@dataclasses.dataclass(frozen=True)
class StreamFeed:
    """Endless batches of a stream; each process loads its own rows alone.

    Attributes:
      stream: what to read.
      size_at: position -> rows of the batch that begins there.
      placement: of the batches.
      depth: batches ready ahead of the one in use.
      expected: a batch as ``jax.ShapeDtypeStruct``, which all must be like but for their number of
        rows; None checks nothing.
    """

    stream: Rows
    size_at: Callable[[int], int]
    placement: Placement
    depth: int = 2
    expected: Any = None

    def __call__(self, data: DataState) -> Prefetch[Fed]:
        """Batches from ``data`` on, with its history and skips.

        Raises:
          DataError: batches are not as expected. What the stream raises comes in the thread that
            asks for the batch.
        """
        source, mesh, rules = self.stream.at(data), self.placement.devices, self.placement.rules
        if self.expected is not None:
            _check_alike(source.batch(data.position, 1), self.expected)

        def batches() -> Iterator[Fed]:
            state = data
            while True:
                position, size = state.position, self.size_at(state.position)

                def load(rows: slice, position: int = position, size: int = size) -> Any:
                    return source.batch(position, size, rows)

                state = dataclasses.replace(state, position=position + size)
                batch = global_batch(load, size, mesh, rules, self.placement.batch)
                yield Fed(size, batch, state)

        return Prefetch(batches(), self.depth)


def _check_alike(batch: Any, expected: Any) -> None:
    got, wanted = (
        jax.tree.map(lambda x: (tuple(x.shape[1:]), str(x.dtype)), each)
        for each in (batch, expected)
    )
    if got != wanted:
        raise DataError(f"The data gives rows of {got}, where the task expects {wanted}.")
