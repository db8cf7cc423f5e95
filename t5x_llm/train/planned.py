"""Phases of a run: where its data, batch size, learning rate and trained part change by plan.

The guard compares the loss and the gradient of a step with those before it. A change that is
planned looks like an accident to it, so the plan names the phase of every step, before the step is
made: a pure function of the configuration, the step and the position in the data.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_llm.train.config import Loop
from t5x_llm.train.feed import Position
from t5x_llm.train.spike import Phase

DOUBLED = 2.0
_CHUNK = 1 << 16
Values = Callable[[np.ndarray], Any]  # (steps [n] from 0) -> values [n]


class Doublings:
    """Steps at which a value has doubled since it was lowest; a decrease is followed in silence.

    Args:
      values: the value by step, such as a schedule of learning rates.
    """

    def __init__(self, values: Values):
        self._values = values
        self._steps: list[int] = []
        self._low, self._known = 0.0, 0

    def before(self, step: int) -> int:
        """Counts the doublings before ``step`` (the first is 1), its own included."""
        while self._known < step:
            index = np.arange(self._known, self._known + _CHUNK, dtype=np.int32)
            values = np.broadcast_to(np.asarray(self._values(index)), index.shape).tolist()
            for at, value in zip(index.tolist(), values, strict=True):
                if at and value > DOUBLED * self._low:
                    self._steps.append(at + 1)
                    self._low = value
                self._low = min(self._low, value) if at else value
            self._known += _CHUNK
        return bisect.bisect_right(self._steps, step)


class RunPhases:
    """Phases of a run, as far as it changes losses or gradients.

    Args:
      loop: batch sizes.
      growing: values by step whose growth changes gradients: learning rate, share of a gradient.
      section: (position of the feed, example) -> name of the part of the data, beside what the
        feed itself knows: its bin, say; None where there are no such parts.
      data: JSON of what decides the data and the loss, by name.
      course: JSON of what decides the updates, by name.
    """

    def __init__(
        self,
        loop: Loop | None = None,
        growing: Sequence[Values] = (),
        section: Callable[[Position, int], str] | None = None,
        data: Mapping[str, Any] | None = None,
        course: Mapping[str, Any] | None = None,
    ):
        self._ramp = loop.ramp if loop else None
        self._growing = [Doublings(values) for values in growing]
        self._section = section
        self.settings = Phase(_digest(data), _digest(course))

    def phase(self, step: int, data: Position, position: int) -> Phase:
        """Returns the phase of a step.

        Args:
          step: its number, from 1.
          data: the feed, with its history; wherever it stands.
          position: the first example of the step's batch.
        """
        part = str(data.part(position))
        if self._section is not None:
            part += f"/{self._section(data, position)}"
        course = [str(each.before(step)) for each in self._growing]
        if self._ramp is not None:
            starts = [start for start, _ in self._ramp.stages]
            course.append(str(bisect.bisect_right(starts, position)))
        return Phase(f"{part}@{self.settings.data}", f"{'/'.join(course)}@{self.settings.course}")


def _digest(settings: Mapping[str, Any] | None) -> str:
    if not settings:
        return ""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
