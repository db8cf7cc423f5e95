"""Configuration of a cleaning: inputs, steps, limits, output."""

from __future__ import annotations

import dataclasses
from typing import Any

from t5x_llm.core.errors import ConfigError, check_choice, check_count, check_number
from t5x_llm.core.paths import check_written
from t5x_llm.data.clean.decontaminate import Decontaminate
from t5x_llm.data.clean.dedup.dedup_config import Dedup
from t5x_llm.data.clean.document import Step
from t5x_llm.data.clean.input_config import Input, Limits

RUNNERS = ("pool", "beam")
COMPRESSIONS = ("zst", "none")


@dataclasses.dataclass(frozen=True)
class Clean:
    """A run of cleaning.

    Attributes:
      inputs: in order: of two equal documents the one that comes first is kept.
      output: directory, local or gs://: ``data/*.jsonl.zst``, ``manifest.json``, ``report.html``.
      steps: applied to each document in order; ``t5x_llm.data.clean`` has them.
      dedup: which repeats are looked for; None leaves them.
      decontaminate: evaluation sets whose text must not be in the output; None looks for none.
      limits: of what an input may ask for.
      shard_bytes: input of one job, about; decides how the output is cut.
      compression: of the output, ``zst`` or ``none``.
      workers: processes; 0 is one a core.
      runner: ``pool`` on this machine, or ``beam``.
      beam_options: flags of Apache Beam: ``--runner=DataflowRunner``, ``--project=...``.
    """

    inputs: tuple[Input, ...]
    output: str
    steps: tuple[Step, ...] = ()
    dedup: Dedup | None = None
    decontaminate: Decontaminate | None = None
    limits: Limits = dataclasses.field(default_factory=Limits)
    shard_bytes: int = 16 << 20
    compression: str = "zst"
    workers: int = 0
    runner: str = "pool"
    beam_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        inputs = (self.inputs,) if isinstance(self.inputs, Input) else tuple(self.inputs)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "steps", tuple(self.steps))
        options = self.beam_options
        object.__setattr__(
            self, "beam_options", (options,) if isinstance(options, str) else tuple(options)
        )
        if not inputs or not all(isinstance(each, Input) for each in inputs):
            raise ConfigError("Clean.inputs", inputs, "at least one Input")
        names = [each.name for each in inputs]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    "Clean.inputs", name, "names that differ", "Rename one of the two inputs."
                )
        if not isinstance(self.output, str) or not self.output:
            raise ConfigError("Clean.output", self.output, "a directory for what is kept")
        check_written("Clean.output", self.output)
        for step in self.steps:
            if not callable(getattr(step, "open", None)):
                raise ConfigError("Clean.steps", step, "steps of t5x_llm.data.clean")
        self._check_step_names()
        check_choice("Clean.compression", self.compression, COMPRESSIONS)
        check_choice("Clean.runner", self.runner, RUNNERS)
        check_number("Clean.workers", self.workers, low=0, integer=True)
        check_count("Clean.shard_bytes", self.shard_bytes, low=1 << 10)
        if self.beam_options and self.runner != "beam":
            raise ConfigError(
                "Clean.beam_options", self.beam_options, "none, as Clean.runner is 'pool'",
                "Set Clean.runner = 'beam', or leave them out.",
            )  # fmt: skip

    def _check_step_names(self) -> None:
        names = [step.name for step in self.steps]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    "Clean.steps", name, "steps whose names differ, as the report counts by name"
                )

    def described(self) -> dict[str, Any]:
        """Returns all that decides the output as JSON-able data, without place and workers."""
        from t5x_llm.config.describe import to_dict

        return {
            name: to_dict(getattr(self, name))
            for name in (
                *("inputs", "steps", "dedup", "decontaminate", "limits"),
                *("shard_bytes", "compression"),
            )
        }
