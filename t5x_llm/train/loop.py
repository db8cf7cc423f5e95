"""The loop: batch, step, hooks; and what they share, the trainer."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import numpy as np

from t5x_llm.core.paths import as_path
from t5x_llm.train.config import Loop
from t5x_llm.train.feed import Feed, PlacedBatch, Position
from t5x_llm.train.hooks.base import Hook, Results, StepRecord
from t5x_llm.train.journal import Journal
from t5x_llm.train.spike import Spike
from t5x_llm.train.state import TrainState
from t5x_llm.train.step import OWN, SIGNALS, StepFunction
from t5x_llm.train.task import Measures, TrainTask

# Steps by which reading metrics lags behind the device: while one is read, one runs.
LAG = 2


class Rewind(Exception):
    """Verdict of a hook: the steps since before the spike are to be undone."""

    def __init__(self, spike: Spike):
        super().__init__(spike.reason)
        self.spike = spike


@dataclasses.dataclass
class _Pending:
    step: int
    batch: PlacedBatch
    metrics: dict[str, jax.Array]
    waited: float
    compiled: bool


@dataclasses.dataclass(frozen=True)
class Start:
    """State from which training begins.

    Attributes:
      state: the state, fresh or restored.
      data: position of the feed.
      rewinds: number of rewinds so far, those of earlier processes included.
      resumed: the step of the checkpoint that it continues from; None for a fresh run.
    """

    state: TrainState
    data: Position
    rewinds: int = 0
    resumed: int | None = None


@dataclasses.dataclass
class RunRecord:
    """Directory of a run, and what it reports to.

    Attributes:
      directory: the run directory.
      facts: JSON for the record: environment, parameter count, mixture.
      journal: journal for events; None keeps no record.
      heartbeat: called with the name of the present phase whenever there was progress.
    """

    directory: str | os.PathLike[str]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    journal: Journal | None = None
    heartbeat: Callable[[str], None] = lambda phase: None


class Trainer:
    """One run in progress: the loop moves it forward, and the hooks look at it.

    Args:
      config: steps and batch sizes.
      start: the state to begin from.
      measures: measures of the task whose step it is.
      hooks: hooks, called in this order.
      record: directory and journal of the run.
      task: the task, where its parameters are more than one model's; None for a model's own.

    Attributes:
      state: state after the step last handed to the device.
      data: position of the feed behind that step.
      step: number of updates made, by the host's count.
      rewinds: number of rewinds so far.
      signals: those of ``SIGNALS`` that this process sends to all with the next step.
      stopping: True if the run is to be saved and ended after this step.
      seconds: time spent by name, that of training left out.
      primary: True if this process writes what is written once.
    """

    def __init__(
        self,
        config: Loop,
        start: Start,
        measures: Measures,
        hooks: Sequence[Hook],
        record: RunRecord,
        task: TrainTask | None = None,
    ):
        self.config, self.measures, self.hooks = config, measures, list(hooks)
        self._task = task
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

    @property
    def params(self) -> Any:
        """Returns the parameters of the model that is evaluated and sampled."""
        params = self.state.params
        return params if self._task is None else self._task.model_params(params)

    @property
    def saved(self) -> TrainState:
        """Returns the state as checkpoints hold it."""
        if self._task is None:
            return self.state
        return dataclasses.replace(self.state, params=self._task.saved(self.state.params))

    def report(self, event: str, step: int | None = None, **fields: object) -> None:
        """Writes an event to the journal."""
        if self.journal is not None:
            self.journal.write(event, self.step if step is None else step, **fields)

    def begin(self) -> None:
        """Starts the clock, and drops metrics that a rewind left undelivered."""
        self._pending.clear()
        self._clock, self._pauses = time.perf_counter(), 0.0

    def advance(self, step: StepFunction, batch: PlacedBatch, waited: float) -> None:
        """Hands one step to the device, and does not wait for it.

        Args:
          step: the jitted step.
          batch: the batch.
          waited: seconds in which the loop waited for the batch.
        """
        compiled = batch.size not in self._sizes
        if compiled:
            # So that compiling counts for this step and for none before it.
            self.deliver(0)
            self._sizes.add(batch.size)
        offered = (hook.control(self, self.step + 1) for hook in self.hooks)
        control = next((each for each in offered if each is not None), None)
        controls = () if control is None else (control,)
        self.state, metrics = step(self.state, batch.batch, *controls)
        self.step += 1
        self.data = batch.after
        for value in metrics.values():
            value.copy_to_host_async()
        self.signals.clear()
        self._pending.append(_Pending(self.step, batch, metrics, waited, compiled))

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
                position=done.batch.after.position,
                size=done.batch.size,
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
        """Returns True for a metric that is reported as it is: a mean, the unit, the step's own."""
        own = name in OWN and name not in SIGNALS
        return own or name == self.measures.unit or self.measures.is_mean(name)

    @contextlib.contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Lets all metrics arrive, then counts the body's time as ``name``, not as training."""
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
        """Gives all hooks the results of an evaluation at this step."""
        for hook in self.hooks:
            hook.on_eval(self, results)

    @property
    def last(self) -> bool:
        """Returns True once the last step has been dispatched."""
        return self.step >= self.config.steps


def train(
    trainer: Trainer,
    step: StepFunction,
    feed: Feed,
    rewind: Callable[[Trainer, Spike], None] | None = None,
) -> None:
    """Trains until ``Loop.steps``.

    Nothing in here waits for the device but ``deliver``, which reads metrics of ``LAG`` steps ago.

    Args:
      trainer: the run at its start; moved forward in place.
      step: (state, batch) -> (state, metrics), jitted; donates the state.
      feed: position -> batches on the device from there on.
      rewind: takes the run back to before a spike; None where no hook raises ``Rewind``.
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
            batch = next(batches)
            trainer.advance(step, batch, time.perf_counter() - start)
            trainer.deliver()
            for hook in trainer.hooks:
                hook.on_dispatch(trainer)
        trainer.deliver(0)


def _end(
    hook: Hook,
    trainer: Trainer,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    hook.on_end(trainer, error)
