"""Guard of a run: the spike monitor, and the signals that processes send each other."""

from __future__ import annotations

import bisect
import collections
import dataclasses
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np

from t5x_llm.train.hooks.base import Hook, StepRecord
from t5x_llm.train.journal import Decision
from t5x_llm.train.loop import LAG, Rewind, Trainer
from t5x_llm.train.planned import RunPhases
from t5x_llm.train.spike import Phase, SpikeConfig, SpikeMonitor
from t5x_llm.train.step import Control


@dataclasses.dataclass(frozen=True)
class _Limit:
    """Limits on the gradient norms of the steps after ``step``.

    Attributes:
      step: the last step that they rest on.
      same: limit of a step of the same phase.
      changed: limit of a step of another.
      phase: phase of ``step``; None where it is not known.
    """

    step: int
    same: float
    changed: float
    phase: Phase | None

    def of(self, phase: Phase) -> float:
        """Returns the limit of a later step of that phase."""
        return self.same if self.phase is None or phase == self.phase else self.changed

    def to_json(self) -> list[Any]:
        """Returns plain JSON, of which ``from_json`` makes the same limits."""
        values = [x if np.isfinite(x) else None for x in (self.same, self.changed)]
        return [self.step, *values, None if self.phase is None else dataclasses.astuple(self.phase)]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> _Limit:
        """Returns the limits that ``to_json`` wrote; earlier versions wrote (step, same)."""
        step, same, changed, phase = (*value, None, None)[:4]
        same, changed = (np.inf if x is None else float(x) for x in (same, changed))
        return cls(int(step), same, changed, None if phase is None else Phase(*phase))


class Guard(Hook):
    """Feeds the monitor, raises its verdict, and gives the step its limit on gradient norms.

    The limit given to step s rests on the steps up to s - 1 - LAG, the newest that are known in
    any case: how late metrics happen to arrive makes no difference. Where a planned change lies
    between them and s, it is the wider one of ``SpikeMonitor.limit_of_change``.

    Args:
      config: thresholds and remedies of spikes.
      decisions: earlier rewinds; ``Recovery`` appends to the same list.
      signals: names of this process's signals -> the rows of ``Control.signals``.
      phases: the phase of every step; None for a run in which the feed alone plans changes.
    """

    name = "guard"

    def __init__(
        self,
        config: SpikeConfig,
        decisions: Sequence[Decision],
        signals: Callable[[Container[str]], Any],
        phases: RunPhases | None = None,
    ):
        self.config, self.decisions = config, decisions
        self._phases = phases or RunPhases()
        self.monitor = SpikeMonitor(config)
        self._signals = signals
        self._limits: collections.deque[_Limit] = collections.deque(maxlen=16)
        # (step, position behind it, batch size) wherever the batch size changes.
        self._schedule: list[tuple[int, int, int]] = []

    def control(self, trainer: Trainer, step: int) -> Control:
        """Returns the ``Control`` of step ``step``: limit, easing and signals."""
        limit = np.inf
        if self.config.enabled and self.config.skip_updates:
            known = [each for each in self._limits if each.step <= step - 1 - LAG]
            if known:
                phase = self._phases.phase(step, trainer.data, trainer.data.position)
                limit = known[-1].of(phase)
        scale = easing(self.config, self.decisions, step)
        return Control(np.float32(limit), np.float32(scale), self._signals(trainer.signals))

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Judges a step.

        Raises:
          Rewind: a spike, whose steps are to be undone.
        """
        if not self._schedule or self._schedule[-1][2] != record.size:
            self._schedule.append((record.step, record.position, record.size))
        values = record.values
        skipped = values.get("skipped", 0.0) > 0
        if skipped:
            known = dict(position=record.position, grad_norm=values["grad_norm"])
            trainer.report("skip", record.step, **known)
        if not self.config.enabled:
            return
        phase = self._phases.phase(record.step, trainer.data, record.position - record.size)
        found = self.monitor.observe(
            record.step, values["loss"], values["grad_norm"], skipped, phase
        )
        limits = self.monitor.limit(), self.monitor.limit_of_change()
        self._limits.append(_Limit(record.step, *limits, phase))
        if found.spike is not None:
            raise Rewind(found.spike)
        if found.bad:
            trainer.report("peak", record.step, kind=found.bad, reason=found.reason)

    def position_before(self, step: int) -> tuple[int, int]:
        """Returns the data position at which ``step`` began, and its batch size."""
        starts = [entry[0] for entry in self._schedule]
        first, behind, size = self._schedule[max(bisect.bisect_right(starts, step) - 1, 0)]
        return behind + (step - first - 1) * size, size

    def state(self) -> dict[str, Any]:
        """Returns the monitor's state, the newest limits, and the schedule of batch sizes."""
        return {
            "monitor": self.monitor.state(),
            "limits": [each.to_json() for each in self._limits],
            "course": [list(entry) for entry in self._schedule],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from the ``state`` of an earlier process."""
        self.monitor.restore(state["monitor"])
        self._limits.clear()
        self._limits.extend(_Limit.from_json(each) for each in state["limits"])
        self._schedule = [(a, b, c) for a, b, c in state["course"]]


def easing(config: SpikeConfig, decisions: Sequence[Decision], step: int) -> float:
    """Computes the factor on the learning rate of ``step``, below 1 after a rewind for a while."""
    if not decisions or config.easing == 1.0:
        return 1.0
    since = step - 1 - decisions[-1].to_step
    if since >= config.easing_steps:
        return 1.0
    return config.easing + (1.0 - config.easing) * since / config.easing_steps
