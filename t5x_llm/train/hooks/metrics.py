"""The record of a run, a line every few steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from t5x_llm.train.flops import CONVENTION, Peak
from t5x_llm.train.hooks.base import Hook, Results, StepRecord
from t5x_llm.train.hooks.lines import Writer

if TYPE_CHECKING:
    from t5x_llm.train.loop import Run


class Throughput:
    """Tokens/s and model FLOP utilisation over the steps added, those that compiled left out.

    Args:
      flops_per_token: from ``flops_per_token``; None leaves utilisation out.
      peak: of all devices; None gives FLOP/s in its place.
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
            self.tokens += record.values["tokens"]
            self.seconds += record.seconds
            self.waited += record.waited

    def figures(self) -> dict[str, float]:
        """tokens_per_second, gflops_per_second, mfu (fraction of peak), data_wait (fraction)."""
        if self.seconds <= 0:
            return {}
        figures = {"tokens_per_second": self.tokens / self.seconds}
        if self.flops_per_token is not None:
            flops = figures["tokens_per_second"] * self.flops_per_token
            figures["gflops_per_second"] = flops / 1e9
            if self.peak is not None:
                figures["mfu"] = flops / self.peak.flops
        figures["data_wait"] = self.waited / self.seconds
        return figures


class Metrics(Hook):
    """Writes the means of every ``log_every`` steps, and every evaluation.

    A train line: step, examples (position in the data), tokens (predicted so far), loss (nats per
    predicted token), learning_rate, grad_norm and its maximum, z_loss, loss_by_source,
    tokens_by_source (predicted so far: the mixture actually eaten), tokens_per_second, mfu,
    data_wait. Every line has ``rewinds``, how often the run had gone back by then. Means are over
    tokens; what a kill leaves of an interval is in the checkpoint.

    Args:
      writers: where lines go.
      throughput: how speed is counted.
    """

    name = "metrics"

    def __init__(self, writers: Sequence[Writer], throughput: Throughput | None = None):
        self.writers = list(writers)
        self.throughput = throughput or Throughput()
        self._open = False
        self._eaten: list[float] = []
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, float] = {}
        self._norm_max = 0.0
        self._steps = 0
        self._nll: list[float] = []
        self._tokens: list[float] = []

    def on_start(self, run: Run) -> None:
        """Opens the writers, and notes what the run is."""
        if not self._eaten:
            self._eaten = [0.0] * len(run.sources)
        if not run.primary:
            self.writers = []
        for writer in self.writers:
            writer.open(run.step, run.rewinds)
        self._open = True
        peak = self.throughput.peak
        facts = {"flops_convention": CONVENTION, "peak": peak.source if peak else None}
        self._write(run, {"kind": "start", "step": run.step} | run.facts | facts)

    def on_step(self, run: Run, record: StepRecord) -> None:
        """Adds a step; writes when the interval is full or the run at its end."""
        self.throughput.add(record)
        zeros = [0.0] * len(run.sources)
        nll, tokens = ([float(x) for x in v] for v in (record.source_nll, record.source_tokens))
        self._nll = _add(self._nll or zeros, nll)
        self._tokens = _add(self._tokens or zeros, tokens)
        self._eaten = _add(self._eaten, tokens)
        values = record.values
        weights = {"loss": values["tokens"], "z_loss": values["tokens"]}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * weights.get(name, 1.0)
        self._norm_max = max(self._norm_max, values["grad_norm"])
        self._steps += 1
        if record.step % run.config.log_every == 0 or record.step == run.config.steps:
            self._write(run, self._line(run, record))
            self._clear()
            self.throughput.clear()

    def _line(self, run: Run, record: StepRecord) -> dict[str, Any]:
        tokens = max(self._sums["tokens"], 1.0)
        by_source = zip(run.sources, self._nll, self._tokens, strict=True)
        return {
            "kind": "train",
            "step": record.step,
            "examples": record.position,
            "tokens": sum(self._eaten),
            "loss": self._sums["loss"] / tokens,
            "z_loss": self._sums["z_loss"] / tokens,
            "learning_rate": record.values["learning_rate"],
            "grad_norm": self._sums["grad_norm"] / self._steps,
            "grad_norm_max": self._norm_max,
            "batch_size": record.size,
            "loss_by_source": {name: nll / n for name, nll, n in by_source if n > 0},
            "tokens_by_source": dict(zip(run.sources, self._eaten, strict=True)),
            **self.throughput.figures(),
        }

    def on_eval(self, run: Run, results: Results) -> None:
        """Writes the results."""
        self._write(run, {"kind": "eval", "step": run.step, "results": results})
        for writer in self.writers:
            writer.flush()

    def on_rewind(self, run: Run) -> None:
        """Marks the place; lines from here on carry the new count of rewinds."""
        if not self._eaten:
            self._eaten = [0.0] * len(run.sources)
        self.throughput.clear()
        for writer in self.writers:
            writer.rewind(run.step, run.rewinds)
        self._write(run, {"kind": "rewind", "step": run.step})

    def _write(self, run: Run, line: dict[str, Any]) -> None:
        numbered = {"kind": line["kind"], "step": line["step"], "rewinds": run.rewinds} | line
        for writer in self.writers:
            writer.write(numbered)

    def on_end(self, run: Run, error: BaseException | None) -> None:
        """Closes the writers."""
        if self._open:
            for writer in self.writers:
                writer.close()

    def state(self) -> dict[str, Any]:
        """Tokens eaten, and the interval that is not full yet."""
        return {
            "eaten": self._eaten,
            "sums": self._sums,
            "norm_max": self._norm_max,
            "steps": self._steps,
            "nll": self._nll,
            "tokens": self._tokens,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues the interval."""
        self._eaten, self._sums = list(state["eaten"]), dict(state["sums"])
        self._norm_max, self._steps = state["norm_max"], state["steps"]
        self._nll, self._tokens = list(state["nll"]), list(state["tokens"])


def _add(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return np.add(a, b, dtype=np.float64).tolist()
