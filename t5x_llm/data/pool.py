"""A pool of worker processes for jobs that are pure functions."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TypeVar

from t5x_llm.core.errors import DataError

T = TypeVar("T")


class Pool:
    """Pool of worker processes, started at the first call; a context manager.

    Args:
      count: number of processes.
      ended: message for a user whose worker was ended from outside, with the remedy.
    """

    def __init__(self, count: int, ended: str):
        self._count, self._ended = count, ended
        self._executor: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def map(
        self,
        function: Callable[..., T],
        calls: Iterable[tuple[object, ...]],
        done: Callable[[int], object] = int,
    ) -> list[T]:
        """Returns the results of ``function(*call)`` for each call, in order.

        Args:
          function: a function of a module.
          calls: arguments of each call.
          done: called with the number of each call when it is finished.

        Raises:
          DataError: a worker was ended from outside. Errors of the function are raised as well.
        """
        if self._executor is None:
            self._executor = concurrent.futures.ProcessPoolExecutor(
                self._count, multiprocessing.get_context("spawn"), initializer=_end_with_parent
            )
        try:
            futures = [self._executor.submit(function, *call) for call in calls]
            for number, future in enumerate(futures):
                future.add_done_callback(lambda f, n=number: f.cancelled() or done(n))  # type: ignore[misc]
            return [future.result() for future in futures]
        except concurrent.futures.process.BrokenProcessPool as e:
            raise DataError(self._ended) from e


def _end_with_parent() -> None:
    """Ends this worker when its parent process dies."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
