"""Results of a finished or stopped run, read from its directory."""

from __future__ import annotations

import dataclasses
import os

from t5x_llm.core.errors import DataError
from t5x_llm.core.paths import as_path
from t5x_llm.run.load import Loaded, load
from t5x_llm.train.hooks import Results
from t5x_llm.train.jsonl import Line, read_lines
from t5x_llm.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """Metrics of a run, and the way to its parameters.

    Attributes:
      directory: of the run.
      step: last step trained.
      metrics: what was logged of training, a dict every ``Loop.log_every`` steps: step, loss (nats
        a token), learning_rate, grad_norm, tokens, loss_by_source and more.
      evaluations: results on held-out documents, by the step they were made at.
      state: parameters and optimizer state on the run's mesh, as the last step left them; None
        where only the directory was read.
    """

    directory: str
    step: int
    metrics: list[Line] = dataclasses.field(repr=False)
    evaluations: dict[int, Results] = dataclasses.field(repr=False)
    state: TrainState | None = dataclasses.field(default=None, repr=False)

    @property
    def held_out(self) -> Results:
        """The newest evaluation by source and measure; empty if there was none."""
        return self.evaluations[max(self.evaluations)] if self.evaluations else {}

    def load(self) -> Loaded:
        """Returns the trained model with its parameters on one device, from the last checkpoint.

        Raises:
          CheckpointError: there is none.
        """
        return load(self.directory)


def read_result(directory: str | os.PathLike[str], state: TrainState | None = None) -> TrainResult:
    """Reads the metrics of a run directory; of a step trained twice, after a rewind, the last.

    Args:
      directory: of the run.
      state: where it is at hand.

    Raises:
      DataError: it holds no metrics.
    """
    lines = read_lines(as_path(directory) / "metrics.jsonl")
    metrics = {line["step"]: line for line in lines if line.get("kind") == "train"}
    if not metrics:
        raise DataError(f"{directory} holds no metrics of training (metrics.jsonl).")
    found = {line["step"]: line["results"] for line in lines if line.get("kind") == "eval"}
    ordered = [metrics[step] for step in sorted(metrics)]
    return TrainResult(os.fspath(directory), ordered[-1]["step"], ordered, found, state)
