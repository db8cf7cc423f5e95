"""Monitor of a run's health: loss and gradient norm in, a verdict out.

PaLM's authors restarted from about 100 steps before a loss spike and skipped 200 to 500 batches
(arXiv 2204.02311, section 5.1). The monitor says when, and names the step at which it began.

Statistics are robust (medians) over the steps that were not bad, as a spike must not make itself
ordinary. A level is the median of the last ``LEVEL`` values, moved by the median of how far the
last ``window`` values lay from the median before them: a loss that falls is expected to go on
falling. A scale is 1.4826 times the median distance from that, which for normal noise is its
standard deviation. Six deviations over 128 steps is also what OLMo-core's step skipping uses.

What is planned is no spike. Steps come with their ``Phase``; where it changes, a window of
``warmup`` steps opens. Other data have another level of loss, so its statistics begin anew; another
batch size, learning rate or trained part keeps the level, and gradients alone begin anew. Until
``SETTLE`` values of a new level are known, a bound holds that no plan reaches and an accident does:
twice the loss of a uniform guess, or a gradient ``norm_factor ** 2`` times the largest ordinary
one. To the end of the window thresholds are wider, and no drift is looked for.

Everything follows from the sequence of (step, loss, gradient norm, phase) alone: not from clocks,
nor from how late metrics arrive. So all hosts, and a run that was killed and resumed, decide alike.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
from typing import Any

from t5x_llm.core.errors import check_number

LEVEL = 32
RECENT = 5  # steps among which ``patience`` bad ones make a spike
SETTLE = 8  # ordinary steps after which there is a level
UNIFORM = 12.5  # nats per token of a uniform guess among 2^18 tokens
SUSTAINED, AMONG = 10, 12  # so many of the last losses a third of ``deviations`` up: a spike
WIDER = 2.0  # factor on ``deviations`` and ``norm_factor`` in a window
RISE = 5.0  # factor on ``min_rise`` in a window


@dataclasses.dataclass(frozen=True)
class Phase:
    """Names of what was planned for a step; steps of one phase are alike but for chance.

    Attributes:
      data: name of the data; losses of different ones are not compared.
      course: name of batch size, learning rate and trained part; gradients of different ones are
        not compared.
    """

    data: str = ""
    course: str = ""


@dataclasses.dataclass(frozen=True)
class SpikeConfig:
    """Thresholds of a loss spike, and the remedies.

    Attributes:
      enabled: False watches nothing.
      window: number of steps that the statistics look back on.
      warmup: steps observed before anything but a number that is not finite is bad.
      deviations: a loss, or a gradient norm's logarithm, so many scales above its level is bad.
      min_rise: nats per token; a smaller rise of the loss is never bad.
      norm_factor: a gradient norm less than so many times its level is never bad.
      patience: bad steps among five that make a spike.
      drift_deviations: a level so many scales above the lowest one for ``window / 2`` steps on end
        is a sustained divergence.
      skip_updates: a step whose gradient norm is bad leaves the parameters as they are. Where a
        loss or norm is not finite that holds in any case.
      rewind_steps: back to the newest checkpoint at least so many steps before the onset.
      skip_batches: batches of data skipped, from ``rewind_steps`` before the onset on.
      max_rewinds: limit on all rewinds of the run.
      max_rewinds_per_window: limit on rewinds with onsets within ``rewind_window`` steps of each
        other.
      rewind_window: number of steps.
      easing: learning rate after a rewind as a fraction of the schedule's; 1 leaves it alone.
      easing_steps: steps over which it then returns to the schedule linearly.
    """

    enabled: bool = True
    window: int = 128
    warmup: int = 64
    deviations: float = 6.0
    min_rise: float = 0.3
    norm_factor: float = 8.0
    patience: int = 3
    drift_deviations: float = 4.0
    skip_updates: bool = True
    rewind_steps: int = 100
    skip_batches: int = 300
    max_rewinds: int = 20
    max_rewinds_per_window: int = 3
    rewind_window: int = 1000
    easing: float = 1.0
    easing_steps: int = 0

    def __post_init__(self) -> None:
        for name, low in (
            ("window", 8),
            ("warmup", 4),
            ("rewind_steps", 1),
            ("skip_batches", 1),
            ("max_rewinds", 0),
            ("max_rewinds_per_window", 1),
            ("rewind_window", 1),
            ("easing_steps", 0),
        ):
            check_number(f"SpikeConfig.{name}", getattr(self, name), low=low, integer=True)
        check_number("SpikeConfig.patience", self.patience, low=1, high=RECENT, integer=True)
        for name in ("deviations", "min_rise", "drift_deviations"):
            check_number(f"SpikeConfig.{name}", getattr(self, name), above=0)
        check_number("SpikeConfig.norm_factor", self.norm_factor, above=1)
        check_number("SpikeConfig.easing", self.easing, above=0, high=1)


@dataclasses.dataclass(frozen=True)
class Spike:
    """Verdict to rewind.

    Attributes:
      onset: the first bad step.
      detected: the step whose metrics showed it.
      kind: ``loss``, ``gradient``, ``not finite`` or ``drift``.
      reason: text for people.
    """

    onset: int
    detected: int
    kind: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Finding:
    """Finding about one step.

    Attributes:
      bad: '' for an ordinary step, else ``loss``, ``gradient`` or ``not finite``.
      reason: text for people.
      spike: the verdict to rewind, or None.
    """

    bad: str = ""
    reason: str = ""
    spike: Spike | None = None


class _Series:
    """Level and scale of the ordinary values so far."""

    def __init__(self, window: int):
        self.recent: collections.deque[float] = collections.deque(maxlen=LEVEL)
        self.residuals: collections.deque[float] = collections.deque(maxlen=window)
        self._found: tuple[float, float] | None = None

    def add(self, value: float) -> None:
        if self.recent:
            self.residuals.append(value - statistics.median(self.recent))
        self.recent.append(value)
        self._found = None

    @property
    def settled(self) -> bool:
        """Returns True if there are enough values for a level."""
        return len(self.recent) >= SETTLE

    @property
    def level(self) -> float:
        return self._statistics()[0]

    @property
    def scale(self) -> float:
        return self._statistics()[1]

    def _statistics(self) -> tuple[float, float]:
        """Returns level and scale; the trend is the median distance from those before."""
        if self._found is None:
            trend = statistics.median(self.residuals) if self.residuals else 0.0
            spread = [abs(r - trend) for r in self.residuals]
            scale = 1.4826 * statistics.median(spread) if spread else 0.0
            self._found = statistics.median(self.recent) + trend, scale
        return self._found


class SpikeMonitor:
    """Watches a run, step by step, in order.

    Args:
      config: the thresholds.
    """

    def __init__(self, config: SpikeConfig):
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Forgets everything: what follows is another run."""
        self._loss = _Series(self.config.window)
        self._norm = _Series(self.config.window)
        self._seen = 0
        self._bad: collections.deque[tuple[int, str, str]] = collections.deque(maxlen=RECENT)
        self._lowest = math.inf
        self._risen: int | None = None
        self._phase: Phase | None = None
        self._since: int | None = None  # ordinary steps since the last planned change
        self._same_level = False  # that change was none of the data
        # The last steps with their losses, and with level and scale before them.
        self._last: collections.deque[tuple[int, float, float, float]]
        self._last = collections.deque(maxlen=AMONG)
        self._largest = (0.0, 0.0)  # ordinary loss and norm so far

    def change(self, data: bool) -> None:
        """Opens a window, as the next step is of another phase than those before.

        Args:
          data: the data is another; otherwise losses have the same level as before.
        """
        if not self._seen:
            return
        self._norm = _Series(self.config.window)
        if data:
            self._loss = _Series(self.config.window)
            self._last.clear()
        self._lowest, self._risen, self._since = math.inf, None, 0
        self._same_level = not data

    def observe(
        self,
        step: int,
        loss: float,
        grad_norm: float,
        skipped: bool = False,
        phase: Phase | None = None,
    ) -> Finding:
        """Takes in one step.

        Args:
          step: its number; they come in order.
          loss: nats per token.
          grad_norm: before clipping.
          skipped: the step left the parameters as they were.
          phase: what was planned for it; that of the step before if None.
        """
        if phase is not None and phase != self._phase:
            if self._phase is not None:
                self.change(phase.data != self._phase.data)
            self._phase = phase
        bad, reason = self._judge(loss, grad_norm, skipped)
        sustained = self._sustained(step, loss)
        if not bad:
            self._loss.add(loss)
            self._norm.add(math.log(max(grad_norm, 1e-30)))
            self._seen += 1
            self._since = None if self._since is None else self._since + 1
            self._largest = max(self._largest[0], loss), max(self._largest[1], grad_norm)
        self._bad.append((step, bad, reason))
        return Finding(bad, reason, self._spike(step) or sustained or self._drift(step))

    @property
    def _planned(self) -> bool:
        """Returns True in the window after a planned change."""
        return self._since is not None and self._since < self.config.warmup

    def _judge(self, loss: float, norm: float, skipped: bool) -> tuple[str, str]:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return "not finite", f"loss {loss:g}, gradient norm {norm:g}"
        if self._seen >= self.config.warmup:
            if reason := self._too_high(loss):
                return "loss", reason
            if norm > self.limit():
                usual = "far above any so far"
                if self._norm.settled:
                    usual = f"{norm / math.exp(self._norm.level):.1f} x its level"
                return "gradient", f"gradient norm {norm:.3g}, {usual}"
        return ("gradient", f"gradient norm {norm:.3g}: update skipped") if skipped else ("", "")

    def _too_high(self, loss: float) -> str:
        """Returns how far a loss lies above what is ordinary; '' if it does not."""
        config = self.config
        if not self._loss.settled:
            bound = 2 * max(self._largest[0], UNIFORM)
            return f"loss {loss:.3f}, above {bound:.3f}" if loss > bound else ""
        level, scale = self._loss.level, self._loss.scale
        rise, least, deviations = loss - level, config.min_rise, config.deviations
        if self._planned:
            least, deviations = RISE * least, WIDER * deviations
        if rise <= max(least, deviations * scale):
            return ""
        return f"loss {loss:.3f}, {_times(rise, scale)} above {level:.3f}"

    def limit(self) -> float:
        """Returns the largest ordinary gradient norm; infinite until enough steps were seen."""
        config = self.config
        if self._seen < config.warmup:
            return math.inf
        if not self._norm.settled:
            return self.limit_of_change()
        factor, deviations = config.norm_factor, config.deviations
        if self._planned:
            factor, deviations = WIDER * factor, WIDER * deviations
        rise = max(math.log(factor), deviations * self._norm.scale)
        return math.exp(min(self._norm.level + rise, 80.0))

    def limit_of_change(self) -> float:
        """Returns the largest ordinary gradient norm where another phase begins."""
        if self._seen < self.config.warmup:
            return math.inf
        return self.config.norm_factor**2 * self._largest[1]

    def _spike(self, step: int) -> Spike | None:
        bad = [entry for entry in self._bad if entry[1]]
        if len(bad) < self.config.patience or bad[-1][0] != step:
            return None
        onset, kind, reason = bad[0]
        count = f"{len(bad)} bad steps within {RECENT}"
        return Spike(onset, step, kind, f"{count}, the first: {reason}")

    def _sustained(self, step: int, loss: float) -> Spike | None:
        """Returns the verdict of losses that are raised too little one by one, but all of them."""
        config = self.config
        if self._seen < config.warmup or not self._loss.settled or not math.isfinite(loss):
            return None
        self._last.append((step, loss, self._loss.level, self._loss.scale))
        least, deviations = config.min_rise, config.deviations / 3
        if self._planned and self._same_level:
            least, deviations = RISE * least, WIDER * deviations
        # The level before all of them, as raised losses raise it.
        _, _, level, scale = self._last[0]
        bound = level + max(least, deviations * scale)
        raised = [at for at, value, *_ in self._last if value > bound]
        if len(raised) < SUSTAINED or raised[-1] != step:
            return None
        reason = (
            f"{len(raised)} of {AMONG} losses above {bound:.3f}, where {level:.3f} is the level"
        )
        return Spike(raised[0], step, "loss", reason)

    def _drift(self, step: int) -> Spike | None:
        enough = self._seen >= max(self.config.warmup, LEVEL) and self._loss.settled
        if not enough or self._planned or self._bad[-1][1]:
            return None
        level, scale = self._loss.level, self._loss.scale
        self._lowest = min(self._lowest, level)
        rise = level - self._lowest
        if rise <= max(self.config.min_rise, self.config.drift_deviations * scale):
            self._risen = None
            return None
        self._risen = step if self._risen is None else self._risen
        if step - self._risen < self.config.window // 2:
            return None
        # The median lags behind by half its width.
        onset = max(self._risen - LEVEL // 2, 1)
        reason = f"loss at a level of {level:.3f} since then, {rise:.3f} above its lowest"
        return Spike(onset, step, "drift", reason)

    def state(self) -> dict[str, Any]:
        """Returns JSON that ``restore`` continues from."""
        return {
            "loss": [list(self._loss.recent), list(self._loss.residuals)],
            "norm": [list(self._norm.recent), list(self._norm.residuals)],
            "seen": self._seen,
            "bad": [list(entry) for entry in self._bad],
            "lowest": self._lowest if math.isfinite(self._lowest) else None,
            "risen": self._risen,
            "phase": None if self._phase is None else dataclasses.astuple(self._phase),
            "since": self._since,
            "largest": list(self._largest),
            "same_level": self._same_level,
            "last": [list(entry) for entry in self._last],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up the ``state`` of an earlier process, or of an earlier step."""
        self.reset()
        for series, (recent, residuals) in (
            (self._loss, state["loss"]),
            (self._norm, state["norm"]),
        ):
            series.recent.extend(recent)
            series.residuals.extend(residuals)
        self._seen, self._risen = state["seen"], state["risen"]
        self._bad.extend((step, bad, reason) for step, bad, reason in state["bad"])
        self._lowest = math.inf if state["lowest"] is None else state["lowest"]
        # Earlier versions had none of these.
        phase, self._since = state.get("phase"), state.get("since")
        self._phase = None if phase is None else Phase(*phase)
        self._same_level = state.get("same_level", False)
        self._last.extend((a, b, c, d) for a, b, c, d in state.get("last", ()))
        known = max(self._loss.recent, default=0.0), max(self._norm.recent, default=-80.0)
        loss, norm = state.get("largest", (known[0], math.exp(known[1])))
        self._largest = loss, norm


def _times(rise: float, scale: float) -> str:
    return f"{rise / scale:.0f} deviations" if scale > 0 else f"{rise:.3f}"
