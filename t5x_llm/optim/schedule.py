"""Learning-rate schedules and the batch-size ramp: plain functions of the step and the position."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import optax

from t5x_llm.core.errors import ConfigError, check_choice, check_number

SCHEDULES = ("constant", "linear", "cosine", "rsqrt", "wsd")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warmup to ``peak``, then one of five courses.

    Warmup gives peak * (step + 1) / (warmup_steps + 1): above zero at step 0, so that no step is
    wasted, and exactly ``peak`` at step ``warmup_steps``.

    Attributes:
      name: ``constant``; ``linear`` or ``cosine`` down to ``final_fraction * peak`` at the last
        step; ``rsqrt``: peak * sqrt(s / step) where s = warmup_steps + hold_steps (PaLM: peak 1e-2,
        no warmup, hold_steps 10,000, which is 1 / sqrt(step)); ``wsd``: stays at the peak, then
        goes down linearly over the last ``decay_fraction`` of the steps (MiniCPM, 2404.06395).
      peak: the largest learning rate.
      warmup_steps: steps before the peak is reached.
      final_fraction: last learning rate / peak, for linear, cosine and wsd.
      decay_fraction: the part of all steps that wsd's descent takes.
      hold_steps: steps at the peak before rsqrt goes down.
      total_steps: the length of the course, where it should not be that of the run.
    """

    name: str = "cosine"
    peak: float = 1e-3
    warmup_steps: int = 100
    final_fraction: float = 0.1
    decay_fraction: float = 0.2
    hold_steps: int = 0
    total_steps: int | None = None

    def __post_init__(self) -> None:
        check_choice("Schedule.name", self.name, SCHEDULES)
        check_number("Schedule.peak", self.peak, above=0)
        check_number("Schedule.warmup_steps", self.warmup_steps, low=0, integer=True)
        check_number("Schedule.final_fraction", self.final_fraction, low=0, high=1)
        check_number("Schedule.decay_fraction", self.decay_fraction, above=0, high=1)
        check_number("Schedule.hold_steps", self.hold_steps, low=0, integer=True)
        if self.total_steps is not None:
            check_number("Schedule.total_steps", self.total_steps, low=1, integer=True)
        if self.hold_steps and self.name != "rsqrt":
            raise ConfigError(
                "Schedule.hold_steps", self.hold_steps, f"0, as only rsqrt holds, not {self.name}"
            )

    def build(self, total_steps: int) -> optax.Schedule:
        """The schedule of a run: step (int or int array, from 0) -> float32 learning rate.

        Args:
          total_steps: steps of the run; ``Schedule.total_steps`` comes before it.

        Raises:
          ConfigError: if warmup does not leave room for the descent.
        """
        total = self.total_steps or total_steps
        peak, warmup = float(self.peak), self.warmup_steps
        if self.end(total_steps) is not None and warmup >= total:
            raise ConfigError(
                "Schedule.warmup_steps",
                warmup,
                f"fewer than the {total} steps in all, as {self.name} goes down after warmup",
                f"Set it to {max(total // 10, 0)}, or train for more steps.",
            )
        if self.name == "linear":
            after = optax.linear_schedule(peak, peak * self.final_fraction, total - warmup)
        elif self.name == "cosine":
            after = optax.cosine_decay_schedule(peak, total - warmup, self.final_fraction)
        elif self.name == "wsd":
            descent = min(max(round(total * self.decay_fraction), 1), total - warmup)
            after = optax.linear_schedule(
                peak, peak * self.final_fraction, descent, total - warmup - descent
            )
        elif self.name == "rsqrt":
            after = _rsqrt(peak, warmup, max(warmup + self.hold_steps, 1))
        else:
            after = optax.constant_schedule(peak)
        rise = optax.linear_schedule(peak / (warmup + 1), peak, max(warmup, 1))
        joined = optax.join_schedules([rise, after], [warmup]) if warmup else after
        return lambda step: jnp.asarray(joined(step), jnp.float32)

    def end(self, total_steps: int) -> int | None:
        """Returns the step at which a run's learning rate has come down; None if it never does.

        Args:
          total_steps: steps of the run; ``Schedule.total_steps`` comes before it.
        """
        decays = self.name in ("linear", "cosine", "wsd")
        return (self.total_steps or total_steps) if decays else None


def _rsqrt(peak: float, warmup: int, start: int) -> optax.Schedule:
    """peak * sqrt(start / step), at most the peak; its argument counts from the end of warmup."""

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        return peak * jnp.sqrt(start / jnp.maximum(jnp.asarray(step) + warmup, start))

    return schedule


@dataclasses.dataclass(frozen=True)
class Piecewise:
    """A value by step: straight lines between points, constant before the first and after the last.

    Two points one step apart are a jump. GLM-130B's share of the embedding gradient (arXiv
    2210.02414, section 3.3; its released log): ((6000, 0.1), (6500, 1.0), (22799, 1.0),
    (22800, 0.2), (28800, 1.0), (33599, 1.0), (33600, 0.5), (35199, 0.5), (35200, 0.1)).

    Attributes:
      points: (step, value) pairs, steps ascending.
    """

    points: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        field, points = "Piecewise.points", self.points
        pairs = isinstance(points, (tuple, list)) and all(
            isinstance(p, (tuple, list)) and len(p) == 2 for p in points
        )
        if not pairs or not points:
            raise ConfigError(
                field,
                points,
                "pairs (step, value)",
                "Example: Piecewise.points = ((6000, 0.1), (6500, 1.0))",
            )
        for i, (step, value) in enumerate(points):
            check_number(f"{field}[{i}] step", step, low=0, integer=True)
            check_number(f"{field}[{i}] value", value)
        for i, (one, two) in enumerate(itertools.pairwise(points)):
            if two[0] <= one[0]:
                raise ConfigError(f"{field}[{i + 1}] step", two[0], f"more than {one[0]}")

    def build(self) -> optax.Schedule:
        """step (int or int array, from 0) -> float32 value."""
        steps, values = (jnp.asarray(x, jnp.float32) for x in zip(*self.points, strict=True))
        return lambda step: jnp.interp(jnp.asarray(step, jnp.float32), steps, values)


@dataclasses.dataclass(frozen=True)
class BatchRamp:
    """A batch size that grows as examples are consumed (PaLM 540B: 512, 1024, 2048).

    Counted in examples, the unit of the data stream, so that a rewind or a resume finds the same
    sizes at the same data.

    Attributes:
      stages: (from_example, batch_size) pairs, ascending, the first from example 0. Every stage
        must be a whole number of its own batches long.
    """

    stages: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        field = "BatchRamp.stages"
        stages = self.stages
        pairs = isinstance(stages, (tuple, list)) and all(
            isinstance(s, (tuple, list)) and len(s) == 2 for s in stages
        )
        if not pairs or not stages:
            raise ConfigError(
                field,
                stages,
                "pairs (from_example, batch_size)",
                "Example: BatchRamp.stages = ((0, 32), (3200, 64))",
            )
        for i, (start, size) in enumerate(stages):
            check_number(f"{field}[{i}] from_example", start, low=0, integer=True)
            check_number(f"{field}[{i}] batch_size", size, low=1, integer=True)
        if stages[0][0] != 0:
            raise ConfigError(f"{field}[0] from_example", stages[0][0], "0")
        for i, ((start, size), (end, _)) in enumerate(zip(stages, stages[1:], strict=False)):
            if end <= start:
                raise ConfigError(f"{field}[{i + 1}] from_example", end, f"more than {start}")
            if (end - start) % size:
                near = start + (end - start) // size * size
                raise ConfigError(
                    f"{field}[{i + 1}] from_example",
                    end,
                    f"{start} plus a multiple of the batch size {size} before it",
                    f"Nearest: {near or size} or {near + size}.",
                )
        object.__setattr__(self, "stages", tuple((int(a), int(b)) for a, b in stages))

    def size_at(self, position: int) -> int:
        """The batch size of the step that begins at example ``position``."""
        return next(size for start, size in reversed(self.stages) if start <= position)

    def total(self, steps: int) -> int:
        """Examples consumed by the first ``steps`` steps of a run that skips nothing."""
        done = 0
        for (start, size), after in zip(self.stages, [*self.stages[1:], None], strict=True):
            here = steps if after is None else min(steps, (after[0] - start) // size)
            done += here * size
            steps -= here
        return done

    def steps_to(self, examples: int) -> int:
        """Steps that consume at least ``examples``: the inverse of ``total``."""
        steps = 0
        for (start, size), after in zip(self.stages, [*self.stages[1:], None], strict=True):
            stop = examples if after is None else min(examples, after[0])
            steps += -(-max(stop - start, 0) // size)
        return steps

    @property
    def sizes(self) -> tuple[int, ...]:
        """All batch sizes that occur, in order; each of them is compiled once."""
        return tuple(dict.fromkeys(size for _, size in self.stages))
