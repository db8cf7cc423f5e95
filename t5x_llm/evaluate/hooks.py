"""Evaluation while training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from t5x_llm.evaluate.perplexity import Evaluator, HeldOut
from t5x_llm.train.hooks import Hook, Results
from t5x_llm.train.loop import Run


class Evaluation(Hook):
    """Evaluates every ``Loop.eval_every`` steps, and in full at the last step.

    Give it before the Checkpoint hook, so that a resumed run has it behind it.

    Args:
      evaluator: compiled once, used every time.
      held_out: by source.
      limit: tokens of each source for evaluations before the last; None for all.
    """

    name = "evaluation"

    def __init__(self, evaluator: Evaluator, held_out: Sequence[HeldOut], limit: int | None = None):
        self.evaluator, self.held_out, self.limit = evaluator, list(held_out), limit
        self.results: Results = {}

    def on_dispatch(self, run: Run) -> None:
        """Evaluates when due; all hooks hear of it."""
        every = run.config.eval_every
        if not (run.last or (every and run.step % every == 0)):
            return
        with run.paused("eval"):
            limit = None if run.last else self.limit
            self.results = self.evaluator(run.state.params, self.held_out, limit)
            run.evaluated(self.results)


class Every(Hook):
    """Calls a function every so many steps and at the last, e.g. to write samples.

    Args:
      name: under which its time is accounted.
      steps: the interval; 0 calls at the last step alone.
      function: called with the run.
    """

    def __init__(self, name: str, steps: int, function: Callable[[Run], Any]):
        self.name, self.steps, self.function = name, steps, function

    def on_dispatch(self, run: Run) -> None:
        """Calls the function when due."""
        if run.last or (self.steps and run.step % self.steps == 0):
            with run.paused(self.name):
                self.function(run)
