"""Pipelines over the mesh axis ``stage``: which layers a stage holds, and what it does when.

Everything here is arithmetic; ``stages.py`` moves arrays, ``models/pipelined.py`` runs layers.

A batch goes through the stages in m microbatches (GPipe, arXiv 1811.06965). With v > 1 repeats a
stage holds v groups of layers, p groups apart, and a microbatch goes round v times (interleaved
stages, arXiv 2104.04473, section 2.2). Microbatches go round p at a time: what leaves the last
stage is just what the first one takes next, so nothing waits in a buffer. The backward pass is the
transpose of the forward one: the same table from its end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from t5x_llm.core.errors import ConfigError, check_number

_SHOWN = 24  # ticks of a table


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Pipeline parallelism: how a batch is cut, and which layers each stage holds.

    Attributes:
      microbatches: m, the parts of a batch that follow each other; of each of ``Loop.microbatches``
        where gradients add up over several. With v > 1 a multiple of the stages.
      repeats: v, groups of layers that a stage holds.
      stage_layers: layers of each group, in the model's order: p numbers, or v * p with repeats;
        None for equal ones. All stages take the time of the largest.
      remat: of what a stage does in a tick the backward pass finds its input alone saved, whatever
        ``Run.remat`` keeps within a layer, and goes through its layers once more.
    """

    microbatches: int
    repeats: int = 1
    stage_layers: tuple[int, ...] | None = None
    remat: bool = False

    def __post_init__(self) -> None:
        check_number("Pipeline.microbatches", self.microbatches, low=1, integer=True)
        check_number("Pipeline.repeats", self.repeats, low=1, integer=True)
        if self.stage_layers is None:
            return
        if not isinstance(self.stage_layers, (tuple, list)) or not self.stage_layers:
            raise ConfigError(
                "Pipeline.stage_layers", self.stage_layers, "a tuple of integers, e.g. (7, 8, 8, 9)"
            )
        for count in self.stage_layers:
            check_number("Pipeline.stage_layers", count, low=1, integer=True)

    def schedule(self, stages: int) -> PipelineSchedule:
        """Returns the schedule over ``stages`` stages.

        Raises:
          ConfigError: if the microbatches cannot go round.
        """
        if self.repeats > 1 and self.microbatches % stages:
            lower = self.microbatches // stages * stages
            near = f"{lower} or {lower + stages}" if lower else f"{stages}"
            raise ConfigError(
                "Pipeline.microbatches",
                self.microbatches,
                f"a multiple of the {stages} stages where Pipeline.repeats = {self.repeats}",
                f"Microbatches go round {stages} at a time: set it to {near}.",
            )
        return PipelineSchedule(stages, self.microbatches, self.repeats)

    def layout(self, stages: int, n_layers: int, pattern: int = 1) -> StageLayout:
        """Returns the layers that each stage holds.

        Args:
          stages: p.
          n_layers: L.
          pattern: layers of the pattern that the model repeats; a stage holds whole patterns.

        Raises:
          ConfigError: if the layers do not go into the stages so.
        """
        groups = stages * self.repeats
        of = f"{stages} stages" + (f" x {self.repeats} repeats" if self.repeats > 1 else "")
        if self.stage_layers is None:
            if n_layers % (groups * pattern):
                whole = f" of {pattern} layers, a pattern each" if pattern > 1 else ""
                raise ConfigError(
                    "Pipeline.stage_layers",
                    None,
                    f"the layers of each stage, as {of}{whole} do not divide {n_layers} layers",
                    _near_equal(n_layers // pattern, groups, pattern),
                )
            sizes = (n_layers // groups,) * groups
        else:
            sizes = tuple(self.stage_layers)
        if len(sizes) != groups or sum(sizes) != n_layers:
            raise ConfigError(
                "Pipeline.stage_layers",
                sizes,
                f"{groups} numbers, one for each of {of}, whose sum is {n_layers} layers "
                f"({len(sizes)} given, their sum is {sum(sizes)})",
                _near_equal(n_layers // pattern, groups, pattern),
            )
        for size in sizes:
            if size % pattern:
                raise ConfigError(
                    "Pipeline.stage_layers",
                    sizes,
                    f"multiples of {pattern}: this model repeats a pattern of {pattern} layers, "
                    "which cannot cross from a stage to the next",
                )
        return StageLayout(stages, self.repeats, tuple(size // pattern for size in sizes))


def check_pipelined(stages: int, pipeline: Pipeline | None) -> Pipeline:
    """The pipeline of a mesh with several stages.

    Raises:
      ConfigError: if it has none.
    """
    if pipeline is None:
        raise ConfigError(
            "MeshConfig.pipeline",
            None,
            f"@Pipeline(), as MeshConfig.stage = {stages}",
            "Set MeshConfig.pipeline = @Pipeline(), and Pipeline.microbatches to a few times the "
            "stages.",
        )
    return pipeline


def _near_equal(n_units: int, groups: int, pattern: int) -> str:
    """The remedy: layers that differ as little as may be, more of them in the middle."""
    low, more = divmod(n_units, groups)
    if not low:
        return f"Use at most {n_units} stages x repeats: each holds a whole pattern of layers."
    first = (groups - more + 1) // 2
    sizes = tuple((low + (first <= i < first + more)) * pattern for i in range(groups))
    return f"For example Pipeline.stage_layers = {sizes}."


@dataclasses.dataclass(frozen=True)
class PipelineSchedule:
    """Who works on what at each tick; a tick is one group of layers for one microbatch.

    Attributes:
      stages: p.
      microbatches: m; a multiple of p where v > 1.
      repeats: v.
    """

    stages: int
    microbatches: int
    repeats: int = 1

    @property
    def ticks(self) -> int:
        """Ticks of a forward pass; the backward pass has as many."""
        return self.repeats * self.microbatches + self.stages - 1

    def at(self, tick: int, stage: int) -> tuple[int, int] | None:
        """(microbatch, repeat) that a stage works on, None where it is idle."""
        busy = tick - stage
        if not 0 <= busy < self.repeats * self.microbatches:
            return None
        turn, within = divmod(busy, self.stages * self.repeats)
        repeat, member = divmod(within, self.stages)
        return (turn * self.stages + member, repeat) if self.repeats > 1 else (busy, 0)

    def when(self, microbatch: int, repeat: int, stage: int) -> int:
        """The tick of which ``at`` gives (microbatch, repeat)."""
        if self.repeats == 1:
            return microbatch + stage
        turn, member = divmod(microbatch, self.stages)
        return (turn * self.repeats + repeat) * self.stages + member + stage

    @property
    def bubble(self) -> float:
        """Share of the time that stages of equal groups are idle: (p - 1) / (v m + p - 1)."""
        return (self.stages - 1) / self.ticks

    def table(self) -> str:
        """The forward pass for people: a line a stage, a column a tick.

        A cell is the microbatch, with ``/repeat`` where there are several; a dot is an idle tick.
        """
        ticks = range(self.ticks)
        cut = len(ticks) > _SHOWN
        half = _SHOWN // 2
        shown = [*ticks[:half], None, *ticks[-half:]] if cut else [*ticks]

        def cell(tick: int | None, stage: int) -> str:
            if tick is None:
                return "…"
            found = self.at(tick, stage)
            if found is None:
                return "."
            return f"{found[0]}/{found[1]}" if self.repeats > 1 else f"{found[0]}"

        rows = [["tick", *("…" if t is None else str(t) for t in shown)]]
        rows += [[f"stage {s}", *(cell(t, s) for t in shown)] for s in range(self.stages)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows
        )


@dataclasses.dataclass(frozen=True)
class StageLayout:
    """Units (repeats of the model's pattern of layers) that each stage holds.

    Group g of the v * p groups lies on stage g % p, where it is repeat g // p. All stages run the
    same program, so each has room for as many units a group as the largest has, and where a group
    is smaller computes some of its units in vain.

    Attributes:
      stages: p.
      repeats: v.
      sizes: units of each group, in the model's order.
    """

    stages: int
    repeats: int
    sizes: tuple[int, ...]

    @property
    def n_units(self) -> int:
        """Units in all."""
        return sum(self.sizes)

    @property
    def slots(self) -> int:
        """Room of a group."""
        return max(self.sizes)

    @property
    def waste(self) -> float:
        """Layers that stages compute in vain, as a share of the model's own."""
        return len(self.sizes) * self.slots / self.n_units - 1

    @property
    def held(self) -> np.ndarray:
        """True in the places that have a unit of their own: bool [p, v, slots]."""
        sizes = np.reshape(self.sizes, (self.repeats, self.stages)).T
        return np.arange(self.slots) < sizes[..., None]

    @property
    def units(self) -> np.ndarray:
        """The unit in each place, int [p, v, slots]; a group's last one in what is left over."""
        first = np.reshape(np.cumsum((0, *self.sizes[:-1])), (self.repeats, self.stages)).T
        last = np.reshape(self.sizes, (self.repeats, self.stages)).T - 1
        return first[..., None] + np.minimum(np.arange(self.slots), last[..., None])

    @property
    def places(self) -> np.ndarray:
        """(stage, repeat, slot) of each unit: int [units, 3]."""
        where = np.argwhere(self.held)
        return where[np.argsort(self.units[self.held])]

    def text(self, pattern: int = 1) -> str:
        """The stages for people: layers of each, counted from 0."""
        lines = []
        for stage in range(self.stages):
            held, units = self.held[stage], self.units[stage]
            spans = [u[h] for u, h in zip(units, held, strict=True)]
            ranges = ", ".join(f"{u[0] * pattern}-{(u[-1] + 1) * pattern - 1}" for u in spans)
            lines.append(f"stage {stage}: layers {ranges} ({sum(map(len, spans)) * pattern})")
        return "\n".join(lines)


def simulate(
    schedule: PipelineSchedule,
    forward: Sequence[Sequence[float]],
    backward: Sequence[Sequence[float]],
) -> tuple[float, float]:
    """The time of a step if every stage began as soon as it can: for planning, measured nowhere.

    All microbatches go forward, then all go backward in the opposite order, each stage working off
    its column of the schedule. A stage waits for the one before it (behind it, backward) and for
    itself; messages take no time.

    Args:
      schedule: who works on what.
      forward: seconds of each stage's groups: ``[p][v]``.
      backward: likewise, of the backward pass.

    Returns:
      (seconds until the last stage is done, share of all stages' time that they are idle).
    """
    p, ticks = schedule.stages, schedule.ticks
    groups = schedule.repeats * p
    ready = [0.0] * p  # when a stage is free
    done: dict[tuple[int, int], float] = {}  # (microbatch, group) -> time
    for direction, costs in ((1, forward), (-1, backward)):
        if direction < 0:
            start = {(i, groups): done[i, groups - 1] for i in range(schedule.microbatches)}
            done = start
        for tick in range(ticks)[::direction]:
            for stage in range(p):
                if (found := schedule.at(tick, stage)) is None:
                    continue
                microbatch, repeat = found
                group = repeat * p + stage
                ready[stage] = (
                    max(ready[stage], done.get((microbatch, group - direction), 0.0))
                    + costs[stage][repeat]
                )
                done[microbatch, group] = ready[stage]
    end = max(done.values())
    busy = schedule.microbatches * sum(map(sum, (*forward, *backward)))
    return end, 1 - busy / (p * end)
