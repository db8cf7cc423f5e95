"""Evaluation while training, and what a model has forgotten since its start."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from t5x_llm.core.errors import DataError
from t5x_llm.core.paths import as_path, write_json
from t5x_llm.evaluate.perplexity import Evaluator, HeldOut
from t5x_llm.train.hooks import Hook, Results
from t5x_llm.train.loop import Trainer

BASELINE = "baseline.json"


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What a model could do before it was trained on.

    Attributes:
      limited: results over the documents of evaluations before the last.
      full: over all documents.
      length: tokens of a window; results of another length do not compare.
    """

    limited: Results
    full: Results
    length: int

    def compared(self, results: Results, full: bool) -> Results:
        """``results`` with ``change``, how much larger bits per byte are (0.02 is 2%), or the loss.

        A source that the baseline lacks, or that was read to another extent, has none.
        """
        before = self.full if full else self.limited
        out = {}
        for name, now in results.items():
            was = before.get(name, {})
            key = "bits_per_byte" if "bits_per_byte" in now else "loss"
            same = was.get("documents") == now.get("documents")
            if same and was.get(key):
                now = now | {"change": now[key] / was[key] - 1}
            out[name] = now
        return out


def read_baseline(directory: str | os.PathLike[str]) -> Baseline | None:
    """The baseline of a run, None if it has none.

    Raises:
      DataError: the file is not one.
    """
    path = as_path(directory) / BASELINE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Baseline(content["limited"], content["full"], content["length"])
    except (ValueError, KeyError, TypeError) as e:
        raise DataError(f"{path} is no baseline of a run ({e!r}): remove it.") from e


class EvaluationHook(Hook):
    """Evaluates every ``Loop.eval_every`` steps, and in full at the last step.

    Give it before the Checkpoint hook, so that a resumed run has it behind it.

    Args:
      evaluator: compiled once, used every time.
      held_out: by source.
      limit: tokens of each source for evaluations before the last; None for all.
      compare: whether a fresh run is evaluated before its first step as well; all later results
        then have ``change`` (see ``Baseline``).
      baseline: what to compare with instead, from an earlier run.
    """

    name = "evaluation"

    def __init__(
        self,
        evaluator: Evaluator,
        held_out: Sequence[HeldOut],
        limit: int | None = None,
        compare: bool = False,
        baseline: Baseline | None = None,
    ):
        self.evaluator, self.held_out, self.limit = evaluator, list(held_out), limit
        self.compare, self.baseline = compare, baseline
        self.results: Results = {}

    def on_start(self, trainer: Trainer) -> None:
        """Finds the baseline, or makes it; of a fresh run all hooks hear where it begins."""
        if not self.compare:
            return
        self.baseline = self.baseline or read_baseline(trainer.directory)
        if trainer.step or trainer.last:
            return
        with trainer.paused("eval"):
            limited = self.evaluator(trainer.state.params, self.held_out, self.limit)
            if self.baseline is None:
                full = limited
                if self.limit is not None:
                    full = self.evaluator(trainer.state.params, self.held_out, None)
                self.baseline = Baseline(limited, full, self.evaluator.length)
            if trainer.primary:
                write_json(trainer.directory / BASELINE, dataclasses.asdict(self.baseline))
            trainer.evaluated(self.baseline.compared(limited, full=False))

    def on_dispatch(self, trainer: Trainer) -> None:
        """Evaluates when due; all hooks hear of it."""
        every = trainer.config.eval_every
        if not (trainer.last or (every and trainer.step % every == 0)):
            return
        with trainer.paused("eval"):
            limit = None if trainer.last else self.limit
            self.results = self.evaluator(trainer.state.params, self.held_out, limit)
            if self.baseline is not None:
                self.results = self.baseline.compared(self.results, limit is None)
            trainer.evaluated(self.results)


class Every(Hook):
    """Calls a function every so many steps and at the last, e.g. to write samples.

    Args:
      name: under which its time is accounted.
      steps: the interval; 0 calls at the last step alone.
      function: called with the run.
    """

    def __init__(self, name: str, steps: int, function: Callable[[Trainer], Any]):
        self.name, self.steps, self.function = name, steps, function

    def on_dispatch(self, trainer: Trainer) -> None:
        """Calls the function when due."""
        if trainer.last or (self.steps and trainer.step % self.steps == 0):
            with trainer.paused(self.name):
                self.function(trainer)
