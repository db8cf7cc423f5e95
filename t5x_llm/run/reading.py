"""Schedule by which each process of a run read its data, as the journal records it.

Batch sizes, the seed and the data may change when a run goes on: a step was read by the schedule of
the process that trained it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from t5x_llm.core.errors import ConfigError
from t5x_llm.core.paths import as_path
from t5x_llm.data.positions import DataState
from t5x_llm.optim import BatchRamp
from t5x_llm.run.config import Run
from t5x_llm.run.identity import newest_checkpoint
from t5x_llm.train.config import Loop
from t5x_llm.train.journal import JOURNAL, read_journal
from t5x_llm.train.jsonl import Line, is_step


def reading(loop: Loop, stream: str) -> dict[str, Any]:
    """Returns JSON for the journal: all of a ``Loop`` that says what a step reads.

    Args:
      loop: the configuration.
      stream: fingerprint of the stream.
    """
    return {
        "batch_size": loop.batch_size,
        "ramp": None if loop.ramp is None else [list(stage) for stage in loop.ramp.stages],
        "sequence_length": loop.sequence_length,
        "seed": loop.seed,
        "skips": [list(skip) for skip in loop.skips],
        "stream": stream,
    }


class ReadStretch(NamedTuple):
    """Steps that were trained in a row by one schedule.

    Attributes:
      step: steps made before it.
      position: examples consumed before it.
      loop: the schedule.
      stream: fingerprint of the stream it read; "" if it was not recorded.
    """

    step: int
    position: int
    loop: Loop
    stream: str

    def first_example(self, step: int) -> int:
        """Counts the examples consumed before a step, from 1, of this stretch."""
        position, steps = self.position, step - 1 - self.step
        for end in self._stages():
            size = self.loop.size_at(position)
            here = min(steps, -(-(end - position) // size))
            position, steps = position + here * size, steps - here
        return position + steps * self.loop.size_at(position)

    def step_at(self, examples: int) -> int:
        """Counts the steps done when so many examples are consumed, one under way included."""
        position, step = self.position, self.step
        for end in self._stages():
            size = self.loop.size_at(position)
            here = -(-max(min(end, examples) - position, 0) // size)
            position, step = position + here * size, step + here
        return step + -(-max(examples - position, 0) // self.loop.size_at(position))

    def _stages(self) -> list[int]:
        ramp = self.loop.ramp
        return [start for start, _ in ramp.stages if start > self.position] if ramp else []


@dataclasses.dataclass(frozen=True)
class ReadSchedule:
    """Schedule of a whole run, changes on the way included.

    Attributes:
      stretches: ascending by step; at least one.
    """

    stretches: tuple[ReadStretch, ...]

    def at(self, step: int) -> ReadStretch:
        """Returns the stretch that trained a step, or will, counted from 1."""
        return next((s for s in reversed(self.stretches) if s.step < step), self.stretches[0])

    def examples_after(self, steps: int) -> int:
        """Counts the examples that the first ``steps`` steps consume."""
        return self.at(steps + 1).first_example(steps + 1)

    def step_at(self, examples: int) -> int:
        """Counts the steps done when so many examples are consumed, one under way included."""
        found = (s for s in reversed(self.stretches) if s.position < examples)
        return next(found, self.stretches[0]).step_at(examples)


def fresh(loop: Loop) -> ReadSchedule:
    """Returns the schedule of a run that begins."""
    return ReadSchedule((ReadStretch(0, 0, loop, ""),))


def read_schedule(run: Run) -> ReadSchedule:
    """Returns the schedule of a run by its directory: as it was, and from now on as configured."""
    directory = as_path(run.directory)
    found = stretches(read_journal(directory / JOURNAL), run.loop)
    if (newest := newest_checkpoint(run)) is not None:
        meta = newest[1]
        now = ReadStretch(meta["step"], DataState.from_json(meta["data"]).position, run.loop, "")
        if now.loop != found[-1].loop:
            found = [each for each in found if each.step < now.step] + [now]
    return ReadSchedule(tuple(found))


def stretches(lines: Sequence[Line], loop: Loop) -> list[ReadStretch]:
    """Returns the stretches of a run, ascending, without what was given up or trained again.

    Args:
      lines: the journal.
      loop: the present schedule, which stands for those that the journal does not record.
    """
    found: list[ReadStretch] = []
    present: dict[int, ReadStretch] = {}
    for line in lines:
        life = line["life"]
        if line["event"] == "start":
            recorded = line.get("reading")
            recorded = recorded if isinstance(recorded, dict) else {}
            then, stream = _loop(recorded, loop), str(recorded.get("stream", ""))
            present[life] = ReadStretch(line["step"], _position(line, then), then, stream)
        elif line["event"] != "restore" or life not in present:
            continue  # a restore before the start is what the start stands at
        else:
            position = _position(line, present[life].loop)
            present[life] = present[life]._replace(step=line["step"], position=position)
        found = [each for each in found if each.step < line["step"]]
        found.append(present[life])
    return found or [ReadStretch(0, 0, loop, "")]


def _position(line: Line, loop: Loop) -> int:
    position = line.get("position")
    return (
        position
        if position is not None and is_step(position)
        else loop.examples_after(line["step"])
    )


def _loop(recorded: dict[str, Any], loop: Loop) -> Loop:
    """Returns ``loop`` with the schedule that a line of the journal records."""
    try:
        ramp = recorded["ramp"]
        return dataclasses.replace(
            loop,
            batch_size=recorded["batch_size"],
            ramp=None if ramp is None else BatchRamp(tuple((a, b) for a, b in ramp)),
            microbatches=1,  # whatever divides those sizes
            sequence_length=recorded["sequence_length"],
            seed=recorded["seed"],
            skips=tuple((a, b) for a, b in recorded["skips"]),
        )
    except (KeyError, TypeError, ValueError, ConfigError):
        return loop
