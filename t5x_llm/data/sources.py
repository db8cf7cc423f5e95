"""Configuration of the data: sources, their mixture, and the directory of their token stores."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from t5x_llm.core import filesystems
from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.core.fields import later
from t5x_llm.core.paths import check_written
from t5x_llm.core.units import count
from t5x_llm.data.denoising import Denoising
from t5x_llm.data.instruct.chat_config import Chat
from t5x_llm.data.instruct.formats import check_format
from t5x_llm.data.instruct.prompts import Prompts, check_prompts
from t5x_llm.data.packing import PACKINGS
from t5x_llm.text import TokenizerTraining

KINDS = ("jsonl", "text", "tfds", "chat")
UNITS = ("file", "line")
RATES = ("proportional", "temperature", "examples", "budgets")
EXHAUSTED = ("stop", "repeat")
CURRICULA = ("", "shortest", "longest", "lowest", "highest")
Stages = tuple[tuple[int | str, dict[str, float]], ...]


@dataclasses.dataclass(frozen=True)
class Source:
    """One body of text, or of conversations.

    Attributes:
      name: letters, digits and underscores; metrics and reports speak of it by this name.
      files: paths or globs, local, gs:// or of a scheme that fsspec reads, for ``jsonl`` and
        ``text``; ``**`` stands for any number of folders. Compressed or not (gz, zst, bz2, xz).
      kind: ``jsonl`` (one JSON object a line), ``text``, ``tfds``, or ``chat`` for conversations
        (see ``Chat``). Files whose names tell a format of their own are read by it: parquet and
        arrays of JSON are records, as jsonl is; html and warc hold pages, of which the main text
        is a document.
      field: of the JSON object or the tfds example that holds the text.
      unit: what is one document in a ``text`` file: the whole ``file``, or every ``line``.
      tfds: name of the tfds dataset, e.g. ``wiki40b/en:1.3.0``.
      tfds_split: split of it to read.
      tfds_data_dir: where it lies; tfds' own default if empty.
      language: e.g. ``en``; evaluation also sums up by language.
      license: licence of the text, for the report.
      validation_fraction: share of documents held out, by hash of their text; the ``Data``'s if
        None.
      tokens: budget: how many of its tokens are read, such as ``'2B'``; rounded to rows.
      epochs: the same as a multiple of its training tokens, such as 1.5; one of the two at most.
      exhausted: behind its budget a source leaves the mixture (``stop``), or reads the part of it
        that the budget bought again and again (``repeat``).
      curriculum: which documents come first: ``shortest`` or ``longest`` by tokens, ``lowest`` or
        ``highest`` by ``score``; between the bins of ``Data.bins``, shuffled inside each.
      score: of a jsonl object the field with a number to order by, or with the label of a
        document; dots lead into objects.
      classes: names that may stand in the field ``score``, each for its index; those of
        ``Run.task`` if ().
      format: of conversations, such as ``alpaca``, ``sharegpt``, ``openai`` or ``preference``; told
        row by row if ``auto``.
      columns: where the files have other names: LLaMA-Factory's columns and tags, such as
        ``{'prompt': 'question', 'response': 'reply'}`` or ``{'messages': 'talk', 'role_tag':
        'who', 'content_tag': 'text', 'user_tag': 'me', 'assistant_tag': 'you'}``.
      prompts: templates that make conversations of the rows' fields; None where rows hold them.
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
    tokens: int | str | None = later(None)
    epochs: float | None = later(None)
    exhausted: str = later("stop")
    curriculum: str = later("")
    score: str = later("")
    classes: tuple[str, ...] = later(())
    format: str = later("auto")
    columns: dict[str, str] | None = later(None)
    prompts: Prompts | None = later(None)

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
        for file in files:
            filesystems.check_readable("Source.files", file)
        if not self.field:
            raise ConfigError("Source.field", self.field, "the name of the field with the text")
        if self.validation_fraction is not None:
            _check_fraction("Source.validation_fraction", self.validation_fraction)
        self._check_conversations()
        self._check_blending()

    def _check_conversations(self) -> None:
        if self.kind == "chat":
            check_format("Source", self.format, self.columns or {}, self.name)
            told = {"columns": self.columns, "format": self.format if self.format != "auto" else ""}
            check_prompts(self.prompts, self.paths, told, self.name)
            return
        for field, value, default in (
            ("format", self.format, "auto"), ("columns", self.columns, None),
            ("prompts", self.prompts, None),
        ):  # fmt: skip
            if value != default:
                raise ConfigError(
                    f"Source.{field}", value, f"{default!r}, as {self.name!r} is of kind "
                    f"{self.kind!r}", "Set Source.kind = 'chat' for conversations.",
                )  # fmt: skip

    def _check_blending(self) -> None:
        if self.tokens is not None:
            count("Source.tokens", self.tokens)
        if self.epochs is not None:
            check_number("Source.epochs", self.epochs, above=0)
            if not math.isfinite(self.epochs):
                raise ConfigError("Source.epochs", self.epochs, "a finite number, or None")
        if self.tokens is not None and self.epochs is not None:
            expected = f"None, as Source.tokens = {self.tokens!r} is the budget of {self.name!r}"
            raise ConfigError("Source.epochs", self.epochs, expected, "Give one of the two.")
        check_choice("Source.exhausted", self.exhausted, EXHAUSTED)
        check_choice("Source.curriculum", self.curriculum, CURRICULA)
        if self.score and self.kind != "jsonl":
            raise ConfigError(
                "Source.score", self.score, f"'', as {self.name!r} is of kind {self.kind!r}",
                "Scores are fields of jsonl objects.",
            )  # fmt: skip
        if self.curriculum in ("lowest", "highest") and not self.score:
            raise ConfigError(
                "Source.score", self.score, f"the field of jsonl objects that {self.name!r} "
                f"is ordered by, as Source.curriculum = {self.curriculum!r}",
            )  # fmt: skip

    @property
    def budgeted(self) -> bool:
        """True if the source has a budget."""
        return self.tokens is not None or self.epochs is not None

    @property
    def paths(self) -> tuple[str, ...]:
        """``files`` as a tuple."""
        return (self.files,) if isinstance(self.files, str) else self.files


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Sources and the share of training rows each gets.

    Attributes:
      sources: in the order that ``Batch.source`` counts.
      rates: one number a source (any scale; 0 leaves it out), ``proportional`` to the tokens,
        ``temperature``: tokens ** (1 / temperature), ``examples``: documents are drawn in the ratio
        of min(documents, max_examples) ** (1 / temperature), or ``budgets``: every source has one,
        and all are used up together.
      temperature: 1 is proportional, large is equal.
      stages: other weights from some point of the run on: ((start, {source: weight}), ...), start
        a step (1000) or tokens of the run (``'20B'``), ascending; ``rates`` hold before the first.
        Rows skipped after a spike count as read.
      replay: share of the rows, in every stage, of a source or of all sources of a language, such
        as ``{'en': 0.1}``; the others share the rest.
      max_epochs: no source may be read more often by the end of the run; None for no limit.
      max_examples: of ``examples``: larger sources count as of so many documents (3000 in FLAN).
    """

    sources: tuple[Source, ...]
    rates: str | tuple[float, ...] = "proportional"
    temperature: float = 1.0
    stages: Stages = later(())
    replay: dict[str, float] | None = later(None)
    max_epochs: float | None = later(None)
    max_examples: int | None = later(None)

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
        check_number("Mixture.temperature", self.temperature, low=0.05)  # 1e13 tokens ** 20
        self._check_stages()
        self._check_replay()
        if self.max_epochs is not None:
            check_number("Mixture.max_epochs", self.max_epochs, above=0)
        if self.max_examples is not None:
            check_number("Mixture.max_examples", self.max_examples, low=1, integer=True)
            if self.rates != "examples":
                expected = f"None, as Mixture.rates = {self.rates!r}"
                remedy = "Set Mixture.rates = 'examples'."
                raise ConfigError("Mixture.max_examples", self.max_examples, expected, remedy)
        if isinstance(self.rates, str):
            check_choice("Mixture.rates", self.rates, RATES)
            without = [s.name for s in self.sources if not s.budgeted]
            if self.rates == "budgets" and without:
                raise ConfigError(
                    "Mixture.rates", self.rates, f"budgets of {', '.join(without)} as well",
                    "Set Source.tokens or Source.epochs of each, or give numbers as rates.",
                )  # fmt: skip
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

    def _check_stages(self) -> None:
        field, kinds = "Mixture.stages", set()
        object.__setattr__(self, "stages", tuple(tuple(stage) for stage in self.stages))
        starts = []
        for stage in self.stages:
            if len(stage) != 2 or not isinstance(stage[1], Mapping):
                raise ConfigError(field, stage, "(start, {source: weight})")
            start, weights = stage
            if start != 0:
                kinds.add(type(start))
                starts.append(count(field, start))
            else:
                starts.append(0)
            for name, weight in weights.items():
                check_choice(field, name, [source.name for source in self.sources])
                check_number(field, weight, low=0)
            if not any(weights.values()) or not all(map(math.isfinite, weights.values())):
                raise ConfigError(field, stage, "finite weights, at least one of them above 0")
        if len(kinds) > 1 or starts != sorted(set(starts)):
            raise ConfigError(
                field, [start for start, _ in self.stages],
                "starts that ascend, all of them steps (1000) or all tokens ('20B')",
            )  # fmt: skip

    def _check_replay(self) -> None:
        if self.replay is None:
            return
        languages = {source.language for source in self.sources if source.language}
        taken: dict[str, str] = {}
        for key, share in self.replay.items():
            check_choice(
                "Mixture.replay", key, [*(source.name for source in self.sources), *languages]
            )
            check_number("Mixture.replay", share, above=0)
            for name in self.group(key):
                if name in taken:
                    expected = f"one share for {name!r}, which {taken[name]!r} gives already"
                    raise ConfigError("Mixture.replay", key, expected)
                taken[name] = key
        if math.fsum(self.replay.values()) >= 1 or len(taken) == len(self.sources):
            raise ConfigError(
                "Mixture.replay", self.replay,
                "shares that leave something to the other sources, together below 1",
            )  # fmt: skip

    def group(self, key: str) -> list[str]:
        """Returns the source called ``key``, else the sources of the language ``key``."""
        named = [source.name for source in self.sources if source.name == key]
        return named or [source.name for source in self.sources if source.language == key]


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
      packing: how documents fill rows, ``concat``, ``whole`` or ``similar`` (see ``packing``).
      chat: how conversations become tokens, and which of them are trained; ``Chat``'s defaults if
        there is a source of them and None is given.
      bins: parts of equal numbers of documents into which each source is cut; it is read part after
        part, shuffled inside each. With ``proportional`` rates every tenth of an epoch takes one of
        10 bins of each source.
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
    bins: int = later(1)
    chat: Chat | None = later(None)

    def __post_init__(self) -> None:
        self._check_chat()
        modules = (self.modules,) if isinstance(self.modules, str) else tuple(self.modules)
        object.__setattr__(self, "modules", modules)
        check_choice("Data.packing", self.packing, PACKINGS)
        _check_fraction("Data.validation_fraction", self.validation_fraction)
        check_number("Data.workers", self.workers, low=0, integer=True)
        if not isinstance(self.name, str) or not re.fullmatch(r"\w+", self.name, re.ASCII):
            raise ConfigError("Data.name", self.name, "letters, digits and underscores")
        if not self.store_dir:
            raise ConfigError("Data.store_dir", self.store_dir, "a directory for the token stores")
        check_written("Data.store_dir", self.store_dir)
        if not isinstance(self.tokenizer, TokenizerTraining) and not (
            isinstance(self.tokenizer, str) and self.tokenizer
        ):
            raise ConfigError(
                "Data.tokenizer", self.tokenizer, "the path of a tokenizer or a TokenizerTraining"
            )
        if not isinstance(self.denoising, Denoising):
            raise ConfigError("Data.denoising", self.denoising, "a Denoising")
        check_number("Data.bins", self.bins, low=1, high=10_000, integer=True)
        for source in self.mixture.sources if self.mixture else ():
            if source.curriculum and self.bins < 2:
                raise ConfigError(
                    "Data.bins", self.bins, f"at least 2, as Source.curriculum of {source.name!r} "
                    f"is {source.curriculum!r}",
                    "Documents are ordered between bins and shuffled inside; 10 to 100 are usual.",
                )  # fmt: skip
        if bool(self.mixture) == bool(self.seqio_mixture):
            raise ConfigError(
                "Data.mixture",
                self.mixture,
                "either a Mixture or the name of a seqio mixture (Data.seqio_mixture)",
                "Give one of the two.",
            )

    def _check_chat(self) -> None:
        sources = self.mixture.sources if self.mixture else ()
        talks = [source.name for source in sources if source.kind == "chat"]
        if self.chat is not None and not isinstance(self.chat, Chat):
            raise ConfigError("Data.chat", self.chat, "a Chat, or None")
        if self.chat is not None and not talks:
            raise ConfigError(
                "Data.chat", self.chat, "None, as no source is of kind 'chat'",
                "Set Source.kind = 'chat' for the files of conversations.",
            )  # fmt: skip
        if not talks:
            return
        chat = self.chat or Chat()
        object.__setattr__(self, "chat", chat)
        objective = self.denoising.objective if isinstance(self.denoising, Denoising) else "lm"
        if objective != "lm":
            raise ConfigError(
                "Denoising.objective", objective, f"'lm', as {', '.join(talks)} holds "
                "conversations, whose answers are predicted token by token",
            )  # fmt: skip
        if isinstance(self.tokenizer, TokenizerTraining) and chat.template == "auto":
            raise ConfigError(
                "Chat.template", "auto", "the name of a built-in template or a .jinja file, as "
                "the tokenizer is trained here and brings none", "'vicuna' needs no special tokens",
            )  # fmt: skip

    def held_out(self, source: Source) -> float:
        """Returns the share of the source's documents that is held out."""
        own = source.validation_fraction
        return self.validation_fraction if own is None else own


def _check_fraction(field: str, value: float) -> None:
    check_number(field, value, low=0)
    if value >= 1:
        raise ConfigError(field, value, "below 1", "Some documents must be left to train on.")
