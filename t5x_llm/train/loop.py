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
from t5x_llm.train.journal import Journal
from t5x_llm.train.spike import Spike
from t5x_llm.train.state import TrainState
from t5x_llm.train.step import SIGNALS, Control

# Steps by which reading metrics lags behind the device: while one is read, one runs.
LAG = 2

StepFunction = Callable[..., tuple[TrainState, dict[str, jax.Array]]]
_VECTORS = ("source_nll", "source_tokens")


class Rewind(Exception):
    """A hook's verdict: the steps since before the spike are to be undone."""

    def __init__(self, spike: Spike):
        super().__init__(spike.reason)
        self.spike = spike


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
      control: (run, number of the step to come) -> its ``Control``; None if it takes none.
      journal: where events are told to; None keeps no record.
      beat: called with what is going on whenever there was progress.
      rewinds: how often the run has gone back, earlier processes included.

    Attributes:
      step: updates made, by the host's count.
      signals: those of ``SIGNALS`` that this process sends to all with the next step.
      stopping: the run is to be saved and left after this step.
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
        control: Callable[[Run, int], Control] | None = None,
        journal: Journal | None = None,
        beat: Callable[[str], None] = lambda phase: None,
        rewinds: int = 0,
    ):
        self.config, self.directory = config, as_path(directory)
        self.state, self.data = state, data
        self.step = int(state.step)
        self.sources, self.hooks = tuple(sources), list(hooks)
        self.facts = dict(facts or {})
        self.control, self.journal, self.beat = control, journal, beat
        self.rewinds = rewinds
        self.signals: set[str] = set()
        self.stopping = False
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.primary = jax.process_index() == 0
        self._pending: collections.deque[_Pending] = collections.deque()
        self._sizes: set[int] = set()
        self._clock = time.perf_counter()
        self._pauses = 0.0

    def tell(self, event: str, step: int | None = None, **fields: Any) -> None:
        """Writes an event to the journal."""
        if self.journal is not None:
            self.journal.write(event, self.step if step is None else step, **fields)

    def begin(self) -> None:
        """Starts the clock; what a rewind left undelivered is of no use."""
        self._pending.clear()
        self._clock, self._pauses = time.perf_counter(), 0.0

    def advance(self, step: StepFunction, fed: Fed, waited: float) -> None:
        """Hands one step to the device; does not wait for it."""
        compiled = fed.size not in self._sizes
        if compiled:
            # So that compiling counts for this step and for none before it.
            self.deliver(0)
            self._sizes.add(fed.size)
        control = () if self.control is None else (self.control(self, self.step + 1),)
        self.state, metrics = step(self.state, fed.batch, *control)
        self.step += 1
        self.data = fed.after
        for value in metrics.values():
            value.copy_to_host_async()
        self.signals.clear()
        self._pending.append(_Pending(self.step, fed, metrics, waited, compiled))

    def deliver(self, lag: int = LAG) -> None:
        """Gives the hooks the metrics of all steps but the last ``lag``."""
        while len(self._pending) > lag:
            done = self._pending.popleft()
            host = {name: np.asarray(value) for name, value in done.metrics.items()}
            self.beat("step")
            now = time.perf_counter()
            seconds, self._clock = now - self._clock - self._pauses, now
            self._pauses = 0.0
            if done.compiled:
                self.seconds["compile"] += seconds - done.waited
            self.seconds["data"] += done.waited
            record = StepRecord(
                step=done.step,
                position=done.fed.after.position,
                size=done.fed.size,
                values={k: float(v) for k, v in host.items() if k not in _VECTORS + SIGNALS},
                signals=tuple(k for k in SIGNALS if host.get(k, 0) > 0),
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
        self.beat(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] += spent
            self._pauses += spent
            self.beat("step")

    def evaluated(self, results: Results) -> None:
        """Tells all hooks the results of an evaluation at this step."""
        for hook in self.hooks:
            hook.on_eval(self, results)

    @property
    def last(self) -> bool:
        """Whether the last step has been dispatched."""
        return self.step >= self.config.steps


def train(
    run: Run,
    step: StepFunction,
    feed: Callable[[DataState], Prefetch[Fed]],
    rewind: Callable[[Run, Spike], None] | None = None,
) -> None:
    """Trains until ``run.config.steps``. Nothing in here waits for the device but ``deliver``,
    which reads metrics of ``LAG`` steps ago.

    Args:
      run: where to begin; moved forward in place.
      step: (state, batch) -> (state, metrics), jitted; donates the state.
      feed: DataState -> batches on the device from there on.
      rewind: takes the run back to before a spike; without it none is asked for.
    """
    with contextlib.ExitStack() as ending:
        for hook in run.hooks:
            ending.push(functools.partial(_end, hook, run))
            hook.on_start(run)
        while True:
            try:
                _forward(run, step, feed)
                return
            except Rewind as verdict:
                if rewind is None:
                    raise
                rewind(run, verdict.spike)
                for hook in run.hooks:
                    hook.on_rewind(run)


def _forward(run: Run, step: StepFunction, feed: Callable[[DataState], Prefetch[Fed]]) -> None:
    """To the last step, or to a ``Rewind``."""
    with feed(run.data) as batches:
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
