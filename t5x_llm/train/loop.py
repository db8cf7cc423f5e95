"""The loop: batch, step, hooks; and what they share, the run."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t5x_llm.core.paths import as_path
from t5x_llm.data.positions import DataState
from t5x_llm.data.prefetch import Prefetch
from t5x_llm.train.config import Loop
from t5x_llm.train.feed import Fed
from t5x_llm.train.hooks.base import Hook, Results, StepRecord
from t5x_llm.train.state import TrainState

# Steps by which reading metrics lags behind the device: while one is read, one runs.
LAG = 2

StepFunction = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
_VECTORS = ("source_nll", "source_tokens")


@dataclasses.dataclass
class _Pending:
    step: int
    fed: Fed
    metrics: dict[str, jax.Array]
    waited: float
    compiled: bool


class Run:
    """One run in progress: what the loop moves forward and the hooks look at.

    Args:
      config: the course.
      directory: the run directory.
      state: the state to start from, fresh or restored.
      data: where the data stream stands.
      sources: names, in the order of the metric vectors.
      hooks: called in this order.
      facts: JSON for the record: environment, parameter count, mixture.

    Attributes:
      step: updates made, by the host's count.
      seconds: where the time went, by name; the part not named was training.
    """

    def __init__(
        self,
        config: Loop,
        directory: Any,
        state: TrainState,
        data: DataState,
        sources: Sequence[str],
        hooks: Sequence[Hook] = (),
        facts: Mapping[str, Any] | None = None,
    ):
        self.config, self.directory = config, as_path(directory)
        self.state, self.data = state, data
        self.step = int(state.step)
        self.sources, self.hooks = tuple(sources), list(hooks)
        self.facts = dict(facts or {})
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.primary = jax.process_index() == 0
        self._pending: collections.deque[_Pending] = collections.deque()
        self._sizes: set[int] = set()
        self._clock = time.perf_counter()
        self._pauses = 0.0

    def begin(self) -> None:
        """Starts the clock."""
        self._clock, self._pauses = time.perf_counter(), 0.0

    def advance(self, step: StepFunction, fed: Fed, waited: float) -> None:
        """Hands one step to the device; does not wait for it."""
        compiled = fed.size not in self._sizes
        if compiled:
            # So that compiling counts for this step and for none before it.
            self.deliver(0)
            self._sizes.add(fed.size)
        self.state, metrics = step(self.state, fed.batch)
        self.step += 1
        self.data = fed.after
        for value in metrics.values():
            value.copy_to_host_async()
        self._pending.append(_Pending(self.step, fed, metrics, waited, compiled))

    def deliver(self, lag: int = LAG) -> None:
        """Gives the hooks the metrics of all steps but the last ``lag``."""
        while len(self._pending) > lag:
            done = self._pending.popleft()
            host = {name: np.asarray(value) for name, value in done.metrics.items()}
            now = time.perf_counter()
            seconds, self._clock = now - self._clock - self._pauses, now
            self._pauses = 0.0
            if done.compiled:
                self.seconds["compile"] += seconds
            self.seconds["data"] += done.waited
            record = StepRecord(
                step=done.step,
                position=done.fed.after.position,
                size=done.fed.size,
                values={k: float(v) for k, v in host.items() if k not in _VECTORS},
                source_nll=host["source_nll"],
                source_tokens=host["source_tokens"],
                seconds=seconds,
                waited=done.waited,
                compiled=done.compiled,
            )
            for hook in self.hooks:
                hook.on_step(self, record)

    @contextlib.contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Lets all metrics arrive, then accounts the time of the body to ``name``."""
        self.deliver(0)
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] += spent
            self._pauses += spent

    def evaluated(self, results: Results) -> None:
        """Tells all hooks the results of an evaluation at this step."""
        for hook in self.hooks:
            hook.on_eval(self, results)

    @property
    def last(self) -> bool:
        """Whether the last step has been dispatched."""
        return self.step >= self.config.steps


def train(run: Run, step: StepFunction, feed: Callable[[DataState], Prefetch[Fed]]) -> None:
    """Trains until ``run.config.steps``. Nothing in here waits for the device but ``deliver``,
    which reads metrics of ``LAG`` steps ago.

    Args:
      run: where to begin; moved forward in place.
      step: (state, batch) -> (state, metrics), jitted; donates the state.
      feed: DataState -> batches on the device from there on.
    """
    with contextlib.ExitStack() as ending:
        for hook in run.hooks:
            ending.push(functools.partial(_end, hook, run))
            hook.on_start(run)
        batches = ending.enter_context(feed(run.data))
        run.begin()
        while not run.last:
            start = time.perf_counter()
            fed = next(batches)
            run.advance(step, fed, time.perf_counter() - start)
            run.deliver()
            for hook in run.hooks:
                hook.on_dispatch(run)
        run.deliver(0)


def _end(hook: Hook, run: Run, kind: Any, error: BaseException | None, trace: Any) -> None:
    hook.on_end(run, error)
