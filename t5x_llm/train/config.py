"""Configuration of the loop: steps, sizes of a batch, intervals."""

from __future__ import annotations

import dataclasses

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.optim import BatchRamp


@dataclasses.dataclass(frozen=True)
class Loop:
    """Steps of a run, their batches, and the intervals of what happens between them.

    Attributes:
      steps: number of updates.
      batch_size: rows of a global batch.
      sequence_length: T, tokens of a row.
      microbatches: parts in which a batch is processed; gradients add up over them.
      seed: of the parameters and of the data order.
      ramp: a batch size that grows to ``batch_size``; its last stage must be that.
      eval_every: steps between evaluations; 0 evaluates at the end alone.
      log_every: steps between lines of metrics.
      prefetch: batches prepared ahead of the step.
      skips: [start, stop) ranges of the data stream that a fresh run jumps over from the start.
      profile_steps: (first, last) step of a profiler trace, both traced; None for none.
    """

    steps: int
    batch_size: int
    sequence_length: int
    microbatches: int = 1
    seed: int = 0
    ramp: BatchRamp | None = None
    eval_every: int = 0
    log_every: int = 10
    prefetch: int = 2
    skips: tuple[tuple[int, int], ...] = ()
    profile_steps: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, low in (
            ("steps", 1),
            ("batch_size", 1),
            ("sequence_length", 2),
            ("microbatches", 1),
            ("seed", 0),
            ("eval_every", 0),
            ("log_every", 1),
            ("prefetch", 1),
        ):
            high = 2**32 - 1 if name == "seed" else None  # of which JAX makes a key
            check_number(f"Loop.{name}", getattr(self, name), low=low, high=high, integer=True)
        if self.ramp is not None and self.ramp.sizes[-1] != self.batch_size:
            raise ConfigError(
                "Loop.batch_size",
                self.batch_size,
                f"{self.ramp.sizes[-1]}, at which Loop.ramp ends",
            )
        for size in self.sizes:
            if size % self.microbatches:
                raise ConfigError(
                    "Loop.microbatches",
                    self.microbatches,
                    f"a divisor of the batch size {size}",
                    "Each microbatch must have the same number of rows.",
                )
        for skip in self.skips:
            if not (isinstance(skip, (tuple, list)) and len(skip) == 2 and 0 <= skip[0] < skip[1]):
                raise ConfigError(
                    "Loop.skips", self.skips, "pairs (start, stop) with 0 <= start < stop"
                )
        if self.profile_steps is not None:
            pair = tuple(self.profile_steps)
            if len(pair) != 2 or not all(isinstance(s, int) for s in pair) or pair[0] > pair[1]:
                raise ConfigError(
                    "Loop.profile_steps", self.profile_steps, "(first, last), e.g. (20, 25)"
                )
            check_number("Loop.profile_steps", pair[0], low=1, integer=True)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Returns the batch sizes that occur, in order."""
        return self.ramp.sizes if self.ramp else (self.batch_size,)

    def size_at(self, position: int) -> int:
        """Returns the rows of the batch that begins at example ``position``."""
        return self.ramp.size_at(position) if self.ramp else self.batch_size

    def examples_after(self, steps: int) -> int:
        """Counts the examples that the first ``steps`` steps consume."""
        return self.ramp.total(steps) if self.ramp else steps * self.batch_size

    @property
    def examples(self) -> int:
        """Counts the examples that the whole run consumes."""
        return self.examples_after(self.steps)

    def step_at(self, position: int) -> int:
        """Counts the steps done when ``position`` examples are consumed, one under way included."""
        return self.ramp.steps_to(position) if self.ramp else -(-position // self.batch_size)
