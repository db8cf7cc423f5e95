"""The loop: batch, step, hooks; and what they share, the trainer."""

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
from t5x_llm.train.config import Loop
from t5x_llm.train.feed import Fed, Feed, Position
from t5x_llm.train.hooks.base import Hook, Results, StepRecord
from t5x_llm.train.journal import Journal
from t5x_llm.train.spike import Spike
from t5x_llm.train.state import TrainState
from t5x_llm.train.step import OWN, SIGNALS, StepFunction
from t5x_llm.train.task import Measures

# Steps by which reading metrics lags behind the device: while one is read, one runs.
LAG = 2


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


@dataclasses.dataclass(frozen=True)
class Start:
    """Where training begins.

    Attributes:
      state: fresh or restored.
      data: where the feed stands.
      rewinds: how often the run has gone back, earlier processes included.
      resumed: the step of the checkpoint that it continues from; None for a fresh run.
    """

    state: TrainState
    data: Position
    rewinds: int = 0
    resumed: int | None = None


@dataclasses.dataclass
class RunRecord:
    """Where a run lives, and whom it reports to.

    Attributes:
      directory: the run directory.
      facts: JSON for the record: environment, parameter count, mixture.
      journal: where events are reported; None keeps no record.
      heartbeat: called with what is going on whenever there was progress.
    """

    directory: Any
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    journal: Journal | None = None
    heartbeat: Callable[[str], None] = lambda phase: None


class Trainer:
    """One run in progress: what the loop moves forward and the hooks look at.

    Args:
      config: the schedule of steps.
      start: where to begin.
      measures: of the task whose step it is.
      hooks: called in this order.
      record: where the run lives.

    Attributes:
      state: of the step last handed to the device.
      data: where the feed stands behind it.
      step: updates made, by the host's count.
      rewinds: how often the run has gone back.
      signals: those of ``SIGNALS`` that this process sends to all with the next step.
      stopping: the run is to be saved and left after this step.
      seconds: where the time went, by name; the part not named was training.
      primary: this process writes what is written once.
    """

    def __init__(
        self,
        config: Loop,
        start: Start,
        measures: Measures,
        hooks: Sequence[Hook],
        record: RunRecord,
    ):
        self.config, self.measures, self.hooks = config, measures, list(hooks)
        self.state, self.data, self.rewinds = start.state, start.data, start.rewinds
        self.step = int(start.state.step)
        self.directory, self.facts = as_path(record.directory), dict(record.facts)
        self.journal, self.heartbeat = record.journal, record.heartbeat
        self.signals: set[str] = set()
        self.stopping = False
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.primary = jax.process_index() == 0
        self._pending: collections.deque[_Pending] = collections.deque()
        self._sizes: set[int] = set()
        self._clock = time.perf_counter()
        self._pauses = 0.0

    def report(self, event: str, step: int | None = None, **fields: Any) -> None:
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
        controls = (hook.control(self, self.step + 1) for hook in self.hooks)
        control = next((each for each in controls if each is not None), None)
        given = () if control is None else (control,)
        self.state, metrics = step(self.state, fed.batch, *given)
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
            self.heartbeat("step")
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
                values={k: float(v) for k, v in host.items() if self._is_value(k)},
                sums={k: v for k, v in host.items() if not self._is_value(k) and k not in SIGNALS},
                signals=tuple(k for k in SIGNALS if host.get(k, 0) > 0),
                seconds=seconds,
                waited=done.waited,
                compiled=done.compiled,
            )
            for hook in self.hooks:
                hook.on_step(self, record)

    def _is_value(self, name: str) -> bool:
        """Tells whether a metric is of the step as it stands: a mean, the unit, the step's own."""
        own = name in OWN and name not in SIGNALS
        return own or name == self.measures.unit or self.measures.is_mean(name)

    @contextlib.contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Lets all metrics arrive, then accounts the time of the body to ``name``."""
        self.deliver(0)
        self.heartbeat(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] += spent
            self._pauses += spent
            self.heartbeat("step")

    def evaluated(self, results: Results) -> None:
        """Tells all hooks the results of an evaluation at this step."""
        for hook in self.hooks:
            hook.on_eval(self, results)

    @property
    def last(self) -> bool:
        """Whether the last step has been dispatched."""
        return self.step >= self.config.steps


def train(
    trainer: Trainer,
    step: StepFunction,
    feed: Feed,
    rewind: Callable[[Trainer, Spike], None] | None = None,
) -> None:
    """Trains until ``Loop.steps``. Nothing in here waits for the device but ``deliver``, which
    reads metrics of ``LAG`` steps ago.

    Args:
      trainer: where to begin; moved forward in place.
      step: (state, batch) -> (state, metrics), jitted; donates the state.
      feed: position -> batches on the device from there on.
      rewind: takes the run back to before a spike; without it none is asked for.
    """
    with contextlib.ExitStack() as ending:
        for hook in trainer.hooks:
            ending.push(functools.partial(_end, hook, trainer))
            hook.on_start(trainer)
        while True:
            try:
                _forward(trainer, step, feed)
                return
            except Rewind as verdict:
                if rewind is None:
                    raise
                rewind(trainer, verdict.spike)
                for hook in trainer.hooks:
                    hook.on_rewind(trainer)


def _forward(trainer: Trainer, step: StepFunction, feed: Feed) -> None:
    """Trains to the last step, or to a ``Rewind``."""
    with feed(trainer.data) as batches:
        trainer.begin()
        while not trainer.last:
            start = time.perf_counter()
            fed = next(batches)
            trainer.advance(step, fed, time.perf_counter() - start)
            trainer.deliver()
            for hook in trainer.hooks:
                hook.on_dispatch(trainer)
        trainer.deliver(0)


def _end(hook: Hook, trainer: Trainer, kind: Any, error: BaseException | None, trace: Any) -> None:
    hook.on_end(trainer, error)
