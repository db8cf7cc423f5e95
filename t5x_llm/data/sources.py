"""What is trained on: sources, how they mix, and where their token stores live."""

from __future__ import annotations

import dataclasses
import math
import re

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.data.denoising import Denoising
from t5x_llm.data.packing import PACKINGS
from t5x_llm.text import TokenizerTraining

KINDS = ("jsonl", "text", "tfds")
UNITS = ("file", "line")
RATES = ("proportional", "temperature")


@dataclasses.dataclass(frozen=True)
class Source:
    """One body of text.

    Attributes:
      name: letters, digits and underscores; metrics and reports speak of it by this name.
      files: paths or globs, local or gs://, for ``jsonl`` and ``text``.
      kind: ``jsonl`` (one JSON object a line), ``text``, or ``tfds``.
      field: of the JSON object or the tfds example that holds the text.
      unit: what is one document in a ``text`` file: the whole ``file``, or every ``line``.
      tfds: name of the tfds dataset, e.g. ``wiki40b/en:1.3.0``.
      tfds_split: split of it to read.
      tfds_data_dir: where it lies; tfds' own default if empty.
      language: e.g. ``en``; evaluation also sums up by language.
      license: licence of the text, for the report.
      validation_fraction: share of documents held out, by hash of their text; the ``Data``'s if
        None.
    """

    name: str
    files: str | tuple[str, ...] = ()
    kind: str = "jsonl"
    field: str = "text"
    unit: str = "file"
    tfds: str = ""
    tfds_split: str = "train"
    tfds_data_dir: str = ""
    language: str = ""
    license: str = ""
    validation_fraction: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"\w+", self.name, re.ASCII):
            raise ConfigError("Source.name", self.name, "letters, digits and underscores")
        check_choice("Source.kind", self.kind, KINDS)
        check_choice("Source.unit", self.unit, UNITS)
        files = (self.files,) if isinstance(self.files, str) else tuple(self.files)
        object.__setattr__(self, "files", files)
        if self.kind == "tfds" and ":" not in self.tfds:
            raise ConfigError(
                "Source.tfds",
                self.tfds,
                f"a tfds name with its version for source {self.name!r}, e.g. 'wiki40b/en:1.3.0'",
            )
        if self.kind != "tfds" and not all(isinstance(f, str) and f for f in files or [""]):
            raise ConfigError(
                "Source.files", files, f"at least one path or glob for source {self.name!r}"
            )
        if not self.field:
            raise ConfigError("Source.field", self.field, "the name of the field with the text")
        if self.validation_fraction is not None:
            _check_fraction("Source.validation_fraction", self.validation_fraction)

    @property
    def paths(self) -> tuple[str, ...]:
        """``files`` as a tuple."""
        return (self.files,) if isinstance(self.files, str) else self.files


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Sources and the share of training rows each gets.

    Attributes:
      sources: in the order that ``Batch.source`` counts.
      rates: one number a source (any scale; 0 leaves it out), ``proportional`` to the tokens, or
        ``temperature``: tokens ** (1 / temperature).
      temperature: 1 is proportional, large is equal.
    """

    sources: tuple[Source, ...]
    rates: str | tuple[float, ...] = "proportional"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        if not self.sources:
            raise ConfigError("Mixture.sources", (), "at least one Source")
        for source in self.sources:
            if not isinstance(source, Source):
                raise ConfigError("Mixture.sources", source, "Source objects")
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    "Mixture.sources", name, "names that differ", "Rename one of the two sources."
                )
        check_number("Mixture.temperature", self.temperature, above=0)
        if isinstance(self.rates, str):
            check_choice("Mixture.rates", self.rates, RATES)
            return
        object.__setattr__(self, "rates", tuple(self.rates))
        if len(self.rates) != len(names):
            raise ConfigError(
                "Mixture.rates",
                self.rates,
                f"{len(names)} numbers, one for each of {', '.join(names)}",
            )
        for rate in self.rates:
            check_number("Mixture.rates", rate, low=0, remedy="Give 0 to leave a source out.")
        if not any(self.rates) or not all(math.isfinite(float(rate)) for rate in self.rates):
            raise ConfigError(
                "Mixture.rates", self.rates, "finite numbers, at least one of them above 0"
            )


@dataclasses.dataclass(frozen=True)
class Data:
    """The data of a run.

    Attributes:
      mixture: the sources; or else ``seqio_mixture``.
      seqio_mixture: name of a mixture or task that ``modules`` register with seqio. Its tasks give
        a string ``text``, or token ids ``targets`` (and ``loss_mask``) made with ``tokenizer``.
      modules: Python modules to import before: seqio tasks, tfds builders.
      tokenizer: path of a tokenizer, ``bytes``, or how to train one on the documents trained on.
      store_dir: where tokenizer and token stores are built, local or gs://.
      name: of the mixture; several may share a ``store_dir``.
      packing: how documents fill rows, ``concat`` or ``whole`` (see ``packing``).
      validation_fraction: share of each source's documents held out, by hash of their text.
      denoising: what the rows are made into; next-token prediction by default. It decides nothing
        of what is prepared.
      workers: processes that read and tokenize; 0 chooses by the size of the input.
    """

    store_dir: str
    tokenizer: str | TokenizerTraining
    mixture: Mixture | None = None
    seqio_mixture: str = ""
    modules: tuple[str, ...] = ()
    name: str = "mixture"
    packing: str = "concat"
    validation_fraction: float = 0.02
    workers: int = 0
    denoising: Denoising = dataclasses.field(default_factory=Denoising)

    def __post_init__(self) -> None:
        modules = (self.modules,) if isinstance(self.modules, str) else tuple(self.modules)
        object.__setattr__(self, "modules", modules)
        check_choice("Data.packing", self.packing, PACKINGS)
        _check_fraction("Data.validation_fraction", self.validation_fraction)
        check_number("Data.workers", self.workers, low=0, integer=True)
        if not isinstance(self.name, str) or not re.fullmatch(r"\w+", self.name, re.ASCII):
            raise ConfigError("Data.name", self.name, "letters, digits and underscores")
        if not self.store_dir:
            raise ConfigError("Data.store_dir", self.store_dir, "a directory for the token stores")
        if not isinstance(self.tokenizer, TokenizerTraining) and not (
            isinstance(self.tokenizer, str) and self.tokenizer
        ):
            raise ConfigError(
                "Data.tokenizer", self.tokenizer, "the path of a tokenizer or a TokenizerTraining"
            )
        if not isinstance(self.denoising, Denoising):
            raise ConfigError("Data.denoising", self.denoising, "a Denoising")
        if bool(self.mixture) == bool(self.seqio_mixture):
            raise ConfigError(
                "Data.mixture",
                self.mixture,
                "either a Mixture or the name of a seqio mixture (Data.seqio_mixture)",
                "Give one of the two.",
            )

    def held_out(self, source: Source) -> float:
        """Share of the source's documents that is held out."""
        own = source.validation_fraction
        return self.validation_fraction if own is None else own


def _check_fraction(field: str, value: float) -> None:
    check_number(field, value, low=0)
    if value >= 1:
        raise ConfigError(field, value, "below 1", "Some documents must be left to train on.")
