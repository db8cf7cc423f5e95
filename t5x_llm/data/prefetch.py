"""Batches made ahead by a thread, and the time that their consumer waits for them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from t5x_llm.data.batch import Batch
from t5x_llm.data.stream import Stream

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Iterator whose items a background thread makes up to ``depth`` ahead of their use.

    An exception in the thread is raised where the item was due. Close it, or use it in a ``with``.

    Args:
      items: the iterator that the thread reads.
      depth: items kept ready.

    Attributes:
      waited: seconds the consumer has spent waiting for items.
    """

    def __init__(self, items: Iterator[T], depth: int = 2):
        self.waited = 0.0
        self._items = items
        self._ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for item in self._items:
                self._offer(item, None)
                if self._stop.is_set():
                    return
            self._offer(None, StopIteration())
        except BaseException as e:
            self._offer(None, e)

    def _offer(self, item: T | None, error: BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put((item, error), timeout=0.1)
                return
            except queue.Full:
                continue

    def __iter__(self) -> Prefetch[T]:
        return self

    def __next__(self) -> T:
        if self._stop.is_set():
            raise StopIteration
        begin = time.perf_counter()
        item, error = self._ready.get()
        self.waited += time.perf_counter() - begin
        if error is not None:
            self.close()
            raise error
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """Ends the thread; the iterator is exhausted afterwards."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prefetch(
    stream: Stream,
    position: int,
    size_at: Callable[[int], int],
    depth: int = 2,
    rows_at: Callable[[int], slice] | None = None,
) -> Prefetch[tuple[int, Batch]]:
    """Returns an endless iterator of (position behind the batch, host batch), made ahead.

    Args:
      stream: the stream.
      position: examples consumed before.
      size_at: position -> rows of the global batch that begins there.
      depth: batches kept ready.
      rows_at: size of a global batch -> the rows of it this process loads; all of them if None.
    """

    def batches() -> Iterator[tuple[int, Batch]]:
        at = position
        while True:
            size = size_at(at)
            rows = rows_at(size) if rows_at else None
            batch = stream.batch(at, size, rows)
            at += size
            yield at, batch

    return Prefetch(batches(), depth)
