"""Metrics of a run, a line every few steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from t5x_llm.train.flops import CONVENTION, Peak
from t5x_llm.train.hooks.base import Hook, Results, StepRecord
from t5x_llm.train.hooks.lines import Writer
from t5x_llm.train.step import OWN
from t5x_llm.train.task import Measures

if TYPE_CHECKING:
    from t5x_llm.train.loop import Trainer


# A sum over steps: a number, or a list for a vector.
Sum = float | list[float]


class Throughput:
    """Tokens/s and model FLOP utilisation over the steps added, those that compiled left out.

    Args:
      flops_per_token: FLOPs by ``flops.flops_per_token``; None leaves utilisation out.
      peak: peak of all devices; None gives FLOP/s in place of utilisation.
    """

    def __init__(self, flops_per_token: float | None = None, peak: Peak | None = None):
        self.flops_per_token, self.peak = flops_per_token, peak
        self.clear()

    def clear(self) -> None:
        """Starts a new interval."""
        self.tokens = self.seconds = self.waited = 0.0

    def add(self, record: StepRecord) -> None:
        """Counts a step."""
        if not record.compiled:
            self.tokens += record.values.get("tokens", 0.0)
            self.seconds += record.seconds
            self.waited += record.waited

    def figures(self) -> dict[str, float]:
        """Returns tokens_per_second, gflops_per_second, mfu and data_wait (fractions)."""
        if self.seconds <= 0:
            return {}
        figures = {"data_wait": self.waited / self.seconds}
        if not self.tokens:  # of a task that counts none
            return figures
        figures = {"tokens_per_second": self.tokens / self.seconds} | figures
        if self.flops_per_token is not None:
            flops = figures["tokens_per_second"] * self.flops_per_token
            figures["gflops_per_second"] = flops / 1e9
            if self.peak is not None:
                figures["mfu"] = flops / self.peak.flops
        return figures


class Metrics(Hook):
    """Writes the means of every ``log_every`` steps, and every evaluation.

    A train line: step, examples (position in the data), the task's counts (totals since the run
    began; of language modelling tokens, and tokens_by_source: the mixture actually consumed), its
    means over the interval (loss in nats per predicted token, z_loss, loss_by_source),
    learning_rate, grad_norm and its maximum, tokens_per_second, mfu, data_wait. Every line has
    ``rewinds``, how often the run had gone back by then. What a kill leaves of an interval is in
    the checkpoint.

    Args:
      writers: writers of the lines.
      throughput: counter of tokens/s and utilisation.
    """

    name = "metrics"

    def __init__(self, writers: Sequence[Writer], throughput: Throughput | None = None):
        self.writers = list(writers)
        self.throughput = throughput or Throughput()
        self._open = False
        # Counts since the run began, and sums of the interval.
        self._totals: dict[str, Sum] = {}
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Sum] = {}
        self._norm_max = 0.0
        self._steps = 0

    def on_start(self, trainer: Trainer) -> None:
        """Opens the writers, and writes the facts of the run."""
        if not trainer.primary:
            self.writers = []
        for writer in self.writers:
            writer.open(trainer.step, trainer.rewinds)
        self._open = True
        peak = self.throughput.peak
        facts = {"flops_convention": CONVENTION, "peak": peak.source if peak else None}
        self._write(trainer, {"kind": "start", "step": trainer.step} | trainer.facts | facts)

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Adds a step; writes a line when the interval is full, and at the last step."""
        self.throughput.add(record)
        measures, values = trainer.measures, record.values
        for name, value in (values | record.sums).items():
            if name in measures.counts:
                self._totals[name] = _add(self._totals.get(name, 0.0), value)
            factor = values[measures.unit] if name not in OWN and measures.is_mean(name) else 1.0
            self._sums[name] = _add(self._sums.get(name, 0.0), value * factor)
        self._norm_max = max(self._norm_max, values["grad_norm"])
        self._steps += 1
        if record.step % trainer.config.log_every == 0 or record.step == trainer.config.steps:
            self._write(trainer, self._line(trainer.measures, record))
            self._clear()
            self.throughput.clear()

    def _line(self, measures: Measures, record: StepRecord) -> dict[str, Any]:
        labels, means = measures.labels, {}
        counts = {name: _named(x, labels.get(name)) for name, x in self._totals.items()}
        for name, value in self._sums.items():
            if name not in OWN and (weight := measures.weight(name)) is not None:
                means[name] = _mean(value, self._sums[weight], labels.get(name))
        return {
            "kind": "train",
            "step": record.step,
            "examples": record.position,
            **counts,
            **means,
            "learning_rate": record.values["learning_rate"],
            "grad_norm": _mean(self._sums["grad_norm"], self._steps, None),
            "grad_norm_max": self._norm_max,
            "batch_size": record.size,
            **self.throughput.figures(),
        }

    def on_eval(self, trainer: Trainer, results: Results) -> None:
        """Writes the results of an evaluation."""
        self._write(trainer, {"kind": "eval", "step": trainer.step, "results": results})
        for writer in self.writers:
            writer.flush()

    def on_rewind(self, trainer: Trainer) -> None:
        """Writes a line for the rewind; later lines carry the new count of rewinds."""
        self.throughput.clear()
        for writer in self.writers:
            writer.rewind(trainer.step, trainer.rewinds)
        self._write(trainer, {"kind": "rewind", "step": trainer.step})

    def _write(self, trainer: Trainer, line: dict[str, Any]) -> None:
        numbered = {"kind": line["kind"], "step": line["step"], "rewinds": trainer.rewinds} | line
        for writer in self.writers:
            writer.write(numbered)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Closes the writers."""
        if self._open:
            for writer in self.writers:
                writer.close(failed=error is not None)

    def state(self) -> dict[str, Any]:
        """Returns the totals, and the sums of the interval that is not full yet."""
        return {
            "totals": dict(self._totals),
            "sums": dict(self._sums),
            "norm_max": self._norm_max,
            "steps": self._steps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues totals and interval from the ``state`` of an earlier process."""
        self._clear()
        if "totals" in state:
            self._totals, self._sums = dict(state["totals"]), dict(state["sums"])
            self._norm_max, self._steps = state["norm_max"], state["steps"]
        elif state["eaten"]:  # a checkpoint of 0.1.0: its totals go on, its interval begins again
            consumed = list(state["eaten"])
            self._totals = {"tokens": sum(consumed), "tokens_by_source": consumed}


def _add(a: Sum | np.ndarray, b: Sum | np.ndarray) -> Sum:
    """Adds numbers or vectors in float64."""
    return np.add(a, np.asarray(b, np.float64), dtype=np.float64).tolist()


def _named(value: Sum, labels: Sequence[str] | None) -> Sum | dict[str, float]:
    """Returns a number as it is, a vector as {label: number}."""
    return value if labels is None else dict(zip(labels, _entries(value), strict=True))


def _mean(value: Sum, weight: Sum, labels: Sequence[str] | None) -> float | dict[str, float]:
    """Divides a sum by its weight; a vector becomes {label: mean} where the weight is not 0."""
    if labels is None:
        assert not isinstance(value, list) and not isinstance(weight, list)
        return value / max(weight, 1.0)
    weights = weight if isinstance(weight, list) else [weight] * len(labels)
    means = zip(labels, _entries(value), weights, strict=True)
    return {name: x / n for name, x, n in means if n > 0}


def _entries(value: Sum) -> list[float]:
    assert isinstance(value, list), "a sum with labels is a vector"
    return value
