"""Configuration of a cleaning: inputs, steps, limits, output."""

from __future__ import annotations

import codecs
import dataclasses
import re
from typing import Any

from t5x_llm.core import filesystems
from t5x_llm.core.errors import ConfigError, check_choice, check_count, check_number
from t5x_llm.core.paths import check_written
from t5x_llm.data.clean.decontaminate import Decontaminate
from t5x_llm.data.clean.dedup.dedup_config import Dedup
from t5x_llm.data.clean.document import Step

FORMATS = ("auto", "text", "jsonl", "json", "parquet", "warc", "html")
UNITS = ("file", "line", "paragraph")
RUNNERS = ("pool", "beam")
COMPRESSIONS = ("zst", "none")


@dataclasses.dataclass(frozen=True)
class Input:
    """One body of raw text.

    Attributes:
      name: letters, digits and underscores; ids of documents begin with it.
      files: paths or globs, local, gs://, or of a scheme that fsspec reads; ``**`` stands for any
        number of folders, a directory for all files below it.
      format: ``auto`` goes by the suffix: txt and md are text; jsonl and ndjson hold one JSON
        object a line; json the same, or one array of objects; parquet; warc and wet; html and htm.
        Each but parquet may be compressed: gz, zst, bz2, xz. A file whose suffix says nothing
        (``README``, ``changelog.gz``) goes by its content. Any other format reads every file so.
      field: of a record of jsonl or parquet that holds the text.
      keep: further fields of a record, kept in ``Document.meta``.
      unit: what is one document in a text file: ``file``, ``line`` or ``paragraph`` (blank lines
        between).
      encoding: of text and jsonl: ``utf-8``, ``gb18030``, ``big5``; what does not fit is
        quarantined.
      html: whether texts of jsonl and parquet are HTML, to be extracted.
      language: of all its documents if known, in ``meta`` for the steps: ``en``, ``zh``.
      license: of the text, in the manifest.
    """

    name: str
    files: str | tuple[str, ...]
    format: str = "auto"
    field: str = "text"
    keep: tuple[str, ...] = ()
    unit: str = "file"
    encoding: str = "utf-8"
    html: bool = False
    language: str = ""
    license: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"\w+", self.name, re.ASCII):
            raise ConfigError("Input.name", self.name, "letters, digits and underscores")
        files = (self.files,) if isinstance(self.files, str) else tuple(self.files)
        object.__setattr__(self, "files", files)
        if not files or not all(isinstance(f, str) and f for f in files):
            raise ConfigError(
                "Input.files", files, f"at least one path or glob for input {self.name!r}"
            )
        for file in files:
            filesystems.check_readable("Input.files", file)
        keep = (self.keep,) if isinstance(self.keep, str) else tuple(self.keep)
        object.__setattr__(self, "keep", keep)
        check_choice("Input.format", self.format, FORMATS)
        check_choice("Input.unit", self.unit, UNITS)
        _check_encoding(self.encoding)
        if not self.field:
            raise ConfigError("Input.field", self.field, "the name of the field with the text")


def _check_encoding(encoding: str) -> None:
    """Raises ConfigError unless lines end with the byte of a line feed: they are cut undecoded."""
    try:
        known = codecs.lookup(encoding)
        fits = "a\n".encode(encoding) == b"a\n" and isinstance(b"a".decode(encoding), str)
    except (LookupError, TypeError):
        known, fits = None, False
    if known is None or not fits:
        raise ConfigError(
            "Input.encoding", encoding, "an encoding that holds ASCII, such as 'utf-8', 'gb18030'"
        )


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of an input's size; what lies beyond them is quarantined.

    Attributes:
      document_bytes: most bytes of one record or line, and of one text.
      expanded_bytes: most bytes of one compressed file, once decompressed.
      ratio: most decompressed bytes a compressed byte, looked at beyond 64 MB.
    """

    document_bytes: int = 16 << 20
    expanded_bytes: int = 1 << 40
    ratio: float = 200.0

    def __post_init__(self) -> None:
        check_count("Limits.document_bytes", self.document_bytes, low=1024)
        check_count("Limits.expanded_bytes", self.expanded_bytes, low=1024)
        check_number("Limits.ratio", self.ratio, low=1)


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
