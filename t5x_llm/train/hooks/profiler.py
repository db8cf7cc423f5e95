"""A trace of chosen steps."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import jax

from t5x_llm.train.hooks.base import Hook

if TYPE_CHECKING:
    from t5x_llm.train.loop import Run


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

    def on_start(self, run: Run) -> None:
        """Begins where the first step of the run is to be traced."""
        self._begin(run)

    def on_dispatch(self, run: Run) -> None:
        """Begins before ``first``, ends after ``last``."""
        self._begin(run)
        if self._tracing and run.step >= self.last:
            self._finish(run)

    def on_end(self, run: Run, error: BaseException | None) -> None:
        """Ends a trace that is open."""
        if self._tracing:
            self._finish(run)

    def _begin(self, run: Run) -> None:
        if run.step == self.first - 1 and run.step < run.config.steps:
            with run.paused("profile"):
                jax.profiler.start_trace(os.fspath(run.directory / "profile"))
            self._tracing = True

    def _finish(self, run: Run) -> None:
        with run.paused("profile"):
            jax.block_until_ready(run.state)
            jax.profiler.stop_trace()
        self._tracing = False
