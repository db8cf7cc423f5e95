"""Progress of a run for a person: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import IO, TYPE_CHECKING, Any

from t5x_llm.train.goodput import STARVED, starved
from t5x_llm.train.hooks.base import Hook, Results, StepRecord
from t5x_llm.train.hooks.metrics import Throughput

if TYPE_CHECKING:
    from t5x_llm.train.loop import Trainer


class Progress(Hook):
    """Prints loss, learning rate, gradient norm, tokens/s, utilisation and time left.

    MFU counts as ``train/flops.py`` states. Where no peak is known, GFLOP/s stand in its place;
    on CPU the peak is a matmul measured here, and the figure is called ``of matmul``.

    Args:
      throughput: counter of tokens/s and utilisation.
      stream: stream to print on; stderr if None.
      interval: seconds between plain lines.
      starvation: seconds of training over which the wait for data is judged; a warning that is
        still true comes again after twice as long.
    """

    name = "progress"

    def __init__(
        self,
        throughput: Throughput | None = None,
        stream: IO[str] | None = None,
        interval: float = 10.0,
        starvation: float = 60.0,
    ):
        self.throughput = throughput or Throughput()
        self.stream, self.interval = stream or sys.stderr, interval
        self._bar: Any = None
        self._printed = 0.0
        self._loss = self._units = 0.0
        self._rate: float | None = None
        self._quiet = False
        self._judged_after, self._trained, self._waited = starvation, 0.0, 0.0

    def on_start(self, trainer: Trainer) -> None:
        """Prints the steps to come; the first takes long because it is compiled."""
        self._quiet = not trainer.primary
        if self._quiet or trainer.last:
            return
        first, last = trainer.step, trainer.config.steps
        self._say(f"Training from step {first} to {last}; the first step compiles for a while.")
        if self.stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=trainer.config.steps,
                initial=trainer.step,
                file=self.stream,
                dynamic_ncols=True,
                mininterval=0.2,
                bar_format="{desc}{n_fmt}/{total_fmt} |{bar}| {postfix}",
            )

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Shows a step on the bar, or prints a line when one is due."""
        if self._quiet:
            return
        self.throughput.add(record)
        units = record.values[trainer.measures.unit]
        self._loss += record.values["loss"] * units
        self._units += units
        if not record.compiled:
            per = record.seconds
            self._rate = per if self._rate is None else 0.9 * self._rate + 0.1 * per
            self._judge_waiting(record)
        now = time.monotonic()
        last = record.step == trainer.config.steps
        first = record.compiled and not self._printed
        if self._bar is not None:
            self._bar.set_postfix_str(self._text(trainer, record), refresh=False)
            self._bar.update(record.step - self._bar.n)
        due = now - self._printed >= (1.0 if self._bar is not None else self.interval)
        if first or last or due:
            if self._bar is None:
                width = len(str(trainer.config.steps))
                at = f"{record.step:>{width}}/{trainer.config.steps}"
                self._say(f"step {at}  {self._text(trainer, record)}")
            self._printed = now
            self._loss = self._units = 0.0
            self.throughput.clear()

    def _judge_waiting(self, record: StepRecord) -> None:
        """Warns if the loop waits for data for more than a small part of its time."""
        self._trained += record.seconds
        self._waited += record.waited
        if self._trained < self._judged_after:
            return
        share = self._waited / self._trained
        self._trained = self._waited = 0.0
        if share > STARVED:
            self._say(f"warning: {starved(share)}")
            self._judged_after *= 2

    def on_rewind(self, trainer: Trainer) -> None:
        """Takes the bar back to the step that the run continues from."""
        self.throughput.clear()
        self._loss = self._units = 0.0
        if self._bar is not None:
            self._bar.n = self._bar.last_print_n = trainer.step
            self._bar.refresh()

    def _text(self, trainer: Trainer, record: StepRecord) -> str:
        values, figures = record.values, self.throughput.figures()
        loss = self._loss / self._units if self._units else values["loss"]
        parts = [
            f"loss {loss:.3f}",
            f"lr {values['learning_rate']:.2e}",
            f"grad {values['grad_norm']:.2f}",
        ]
        if figures:
            if "tokens_per_second" in figures:
                parts.append(f"{figures['tokens_per_second']:,.0f} tok/s")
            parts.append(utilisation(figures, self.throughput))
            if figures["data_wait"] > 0.01:
                parts.append(f"waiting for data {figures['data_wait']:.0%}")
        if self._rate is not None:
            left = (trainer.config.steps - record.step) * self._rate
            parts.append(f"{_clock(left)} left")
        elif record.compiled:
            parts.append(f"first step {record.seconds:.1f} s")
        return "  ".join(part for part in parts if part)

    def on_eval(self, trainer: Trainer, results: Results) -> None:
        """Prints a line for an evaluation."""
        if self._quiet:
            return
        parts = [
            f"{name} {r['bits_per_byte']:.3f} bits/byte"
            if "bits_per_byte" in r
            else f"{name} {r['loss']:.3f}"
            for name, r in results.items()
            if "loss" in r
        ]
        self._say(f"held out at step {trainer.step}: {', '.join(parts)}")
        changes = [f"{n} {r['change']:+.2%}" for n, r in results.items() if "change" in r]
        if changes and trainer.step:
            self._say(f"  since the start (a rise is forgetting): {', '.join(changes)}")

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)


def utilisation(figures: dict[str, float], throughput: Throughput) -> str:
    """Formats utilisation: ``MFU 41%``, ``38% of matmul`` or ``87 GFLOP/s``."""
    if "mfu" in figures and throughput.peak is not None:
        measured = "measured" in throughput.peak.source
        return f"{figures['mfu']:.0%} of matmul" if measured else f"MFU {figures['mfu']:.1%}"
    if "gflops_per_second" in figures:
        return f"{figures['gflops_per_second']:,.0f} GFLOP/s"
    return ""


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"
