"""Profiler traces of chosen steps."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import jax

from t5x_llm.train.hooks.base import Hook

if TYPE_CHECKING:
    from t5x_llm.train.loop import Trainer


class Profiler(Hook):
    """Writes a ``jax.profiler`` trace of steps first..last to ``profile/`` of the run directory.

    View it with TensorBoard's profile plugin (xprof) or Perfetto.

    Args:
      steps: (first, last), both traced.
    """

    name = "profiler"

    def __init__(self, steps: tuple[int, int]):
        self.first, self.last = steps
        self._tracing = False

    def on_start(self, trainer: Trainer) -> None:
        """Begins the trace if the first step of the run is to be traced."""
        self._begin(trainer)

    def on_dispatch(self, trainer: Trainer) -> None:
        """Begins the trace before step ``first``, ends it after ``last``."""
        self._begin(trainer)
        if self._tracing and trainer.step >= self.last:
            self._finish(trainer)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Ends a trace that is open."""
        if self._tracing:
            self._finish(trainer)

    def _begin(self, trainer: Trainer) -> None:
        if trainer.step == self.first - 1 and trainer.step < trainer.config.steps:
            with trainer.paused("profile"):
                jax.profiler.start_trace(os.fspath(trainer.directory / "profile"))
            self._tracing = True

    def _finish(self, trainer: Trainer) -> None:
        with trainer.paused("profile"):
            jax.block_until_ready(trainer.state)
            jax.profiler.stop_trace()
        self._tracing = False
