"""Evaluates while training, and measures what a model has forgotten since its start."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence

from t5x_llm.core.errors import DataError
from t5x_llm.core.paths import as_path, write_json
from t5x_llm.evaluate.perplexity import Evaluator, HeldOut
from t5x_llm.train.hooks import Hook, Results
from t5x_llm.train.loop import Trainer

BASELINE = "baseline.json"


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Results of a model before the run trained it.

    Attributes:
      limited: results over the documents of evaluations before the last.
      full: results over all documents.
      length: tokens of a window; results of another length do not compare.
    """

    limited: Results
    full: Results
    length: int

    def compared(self, results: Results, full: bool) -> Results:
        """Adds ``change`` to results: the rise of bits per byte, or of the loss (0.02 is 2%).

        A source that the baseline lacks, or that was read to another extent, has no ``change``.

        Args:
          results: results by source.
          full: True if they are over all documents.
        """
        baseline = self.full if full else self.limited
        compared = {}
        for name, result in results.items():
            earlier = baseline.get(name, {})
            key = "bits_per_byte" if "bits_per_byte" in result else "loss"
            same = all(earlier.get(k) == result.get(k) for k in ("documents", "bytes"))
            if same and earlier.get(key):
                result = result | {"change": result[key] / earlier[key] - 1}
            compared[name] = result
        return compared


def read_baseline(directory: str | os.PathLike[str]) -> Baseline | None:
    """Reads the baseline of a run directory; None if it has none.

    Raises:
      DataError: the file is no baseline.
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

    Give it before the Checkpoint hook, so that a checkpoint is saved after the evaluation.

    Args:
      evaluator: compiled once, used every time.
      held_out: held-out documents, by source.
      limit: tokens of each source for evaluations before the last; None for all.
      compare: True evaluates a fresh run before its first step as well; all later results then
        have ``change`` (see ``Baseline``).
      baseline: baseline of an earlier run, to compare with instead.
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
        """Reads the baseline or makes it; gives all hooks the results of a fresh run's start."""
        if not self.compare:
            return
        self.baseline = self.baseline or read_baseline(trainer.directory)
        if trainer.step or trainer.last:
            return
        with trainer.paused("eval"):
            limited = self.evaluator(trainer.params, self.held_out, self.limit)
            if self.baseline is None:
                full = limited
                if self.limit is not None:
                    full = self.evaluator(trainer.params, self.held_out, None)
                self.baseline = Baseline(limited, full, self.evaluator.length)
            if trainer.primary:
                write_json(trainer.directory / BASELINE, dataclasses.asdict(self.baseline))
            trainer.evaluated(self.baseline.compared(limited, full=False))

    def on_dispatch(self, trainer: Trainer) -> None:
        """Evaluates when due, and gives all hooks the results."""
        every = trainer.config.eval_every
        if not (trainer.last or (every and trainer.step % every == 0)):
            return
        with trainer.paused("eval"):
            limit = None if trainer.last else self.limit
            self.results = self.evaluator(trainer.params, self.held_out, limit)
            if self.baseline is not None:
                self.results = self.baseline.compared(self.results, limit is None)
            trainer.evaluated(self.results)


class Every(Hook):
    """Calls a function at an interval of steps and at the last one, e.g. to write samples.

    Args:
      name: name under which its time is accounted.
      steps: the interval; 0 calls at the last step alone.
      function: called with the trainer.
    """

    def __init__(self, name: str, steps: int, function: Callable[[Trainer], object]):
        self.name, self.steps, self.function = name, steps, function

    def on_dispatch(self, trainer: Trainer) -> None:
        """Calls the function when due."""
        if trainer.last or (self.steps and trainer.step % self.steps == 0):
            with trainer.paused(self.name):
                self.function(trainer)
