"""Work done ahead."""

import queue
import threading

import numpy as np
import pytest
from clocks import Clock, until
from stores import make_store, random_documents

from t5x_llm.data.prefetch import Prefetch, prefetch
from t5x_llm.data.stream import Stream


def test_items_come_in_order_and_end():
    with Prefetch(iter(range(20)), depth=3) as items:
        assert list(items) == list(range(20))
        with pytest.raises(StopIteration):
            next(items)


def test_an_error_is_raised_where_the_item_was_due():
    def items():
        yield 1
        raise ValueError("broken")

    made = Prefetch(items())
    assert next(made) == 1
    with pytest.raises(ValueError, match="broken"):
        next(made)
    assert not made._thread.is_alive()


def test_closing_ends_the_thread_while_it_has_more_to_give():
    def forever():
        while True:
            yield 0

    before = threading.active_count()
    made = Prefetch(forever(), depth=1)
    next(made)
    made.close()
    assert threading.active_count() == before


def test_waiting_is_measured(monkeypatch):
    class Queue(queue.Queue):
        """Says when somebody begins to wait."""

        def __init__(self, depth):
            super().__init__(depth)
            self.asked = threading.Semaphore(0)

        def get(self):
            self.asked.release()
            return super().get()

    monkeypatch.setattr("t5x_llm.data.prefetch.time", clock := Clock())
    monkeypatch.setattr("t5x_llm.data.prefetch.queue.Queue", Queue)

    def slow():
        started.wait()
        for i in range(3):
            items._ready.asked.acquire()
            clock.now += 5
            yield i

    started = threading.Event()
    with Prefetch(slow()) as items:
        started.set()
        assert [next(items) for _ in range(3)] == [0, 1, 2]
        assert items.waited == 15
    with Prefetch(iter(range(3))) as items:
        until(lambda: items._ready.qsize() == 2)
        clock.now += 7
        assert list(items) == [0, 1, 2] and items.waited == 0


def test_batches_of_a_stream_with_growing_sizes(tmp_path):
    documents = random_documents(np.random.default_rng(0), 40, 30)
    stream = Stream({"a": make_store(tmp_path / "a", documents)}, {"a": 1.0}, 16)
    half = lambda size: slice(size // 2, size)  # noqa: E731
    with prefetch(stream, 0, lambda p: 4 if p < 8 else 8, rows_at=half) as batches:
        got = [next(batches) for _ in range(4)]
    assert [after for after, _ in got] == [4, 8, 16, 24]
    np.testing.assert_array_equal(got[2][1].tokens, stream.batch(12, 4).tokens)
