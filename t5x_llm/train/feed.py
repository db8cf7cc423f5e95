"""Batches on the device, prepared in a thread while the device works."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

from jax.sharding import Mesh

from t5x_llm.parallel import Rules, global_batch


@dataclasses.dataclass(frozen=True)
class Fed:
    """One global batch on the mesh.

    Attributes:
      size: its rows.
      batch: a ``data.Batch`` of ``jax.Array``.
      after: the ``DataState`` behind it.
    """

    size: int
    batch: Any
    after: Any


def feed(
    stream: Any, data: Any, size_at: Callable[[int], int], mesh: Mesh, rules: Rules, depth: int = 2
) -> Generator[Fed]:
    """Endless batches from ``data`` on; each process loads its own rows alone.

    Args:
      stream: ``batch(position, size, rows)`` gives rows of a global batch as NumPy arrays.
      data: where to begin, a ``DataState``.
      size_at: position -> rows of the batch that begins there.
      mesh: the mesh.
      rules: the rules.
      depth: batches ready ahead of the one in use.

    Raises:
      Whatever the stream raises, in the thread that asks for the batch.
    """

    def batches() -> Iterator[Fed]:
        state = data
        while True:
            position, size = state.position, size_at(state.position)

            def load(rows: slice, position: int = position, size: int = size) -> Any:
                return stream.batch(position, size, rows)

            state = dataclasses.replace(state, position=position + size)
            yield Fed(size, global_batch(load, size, mesh, rules), state)

    return ahead(batches(), depth)


def ahead(items: Iterator[Any], depth: int) -> Generator[Any]:
    """The same items, made in a thread up to ``depth`` ahead of their use.

    Closing the iterator ends the thread.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def offer(entry: tuple[Any, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                offer((item, None))
                if stop.is_set():
                    return
            offer((None, StopIteration()))
        except BaseException as e:
            offer((None, e))

    thread = threading.Thread(target=work, name="feed", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()
