"""The gin file that ``t5x-llm init`` writes: its values, chosen by data and model, and comments."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from t5x_llm.cli.init_comments import COMMENTS
from t5x_llm.config import Flags, bindings_of
from t5x_llm.config.values import format_value
from t5x_llm.core.errors import ConfigError
from t5x_llm.core.paths import as_path, write_atomic
from t5x_llm.data.inspecting import Inspected
from t5x_llm.hf.import_ import family_in
from t5x_llm.hf.source import open_source
from t5x_llm.models.family import Family
from t5x_llm.models.model import Model
from t5x_llm.run.config import load_run

_SMALL = 20_000_000  # parameters that two CPU cores train in minutes
_PIECE_BYTES = 300  # of text for each piece of a tokenizer that is trained on it
_TOKEN_BYTES = 3.5
_FEW = 5_000_000  # tokens, of which a larger share is held out
_BYTES = 300  # a vocabulary that is no larger is of bytes and marks


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Values of the file.

    Attributes:
      name: of the mixture.
      directory: of the run.
      sources: in order.
      preset: gin file of the model, or None where it is continued.
      start_from: Hugging Face directory that is continued, or None.
      model: gin lines of its model, then.
      tokenizer: path of one, or ``bytes``; None trains one.
      vocab_size: of the tokenizer.
      resized: name of the model's field where the data is too small for the preset's vocabulary.
      length: T.
      rows: of a batch.
      steps: of the run.
      peak: of the learning rate.
    """

    name: str
    directory: str
    sources: tuple[Inspected, ...]
    preset: str | None
    start_from: str | None
    model: tuple[str, ...]
    tokenizer: str | None
    vocab_size: int
    resized: str | None
    length: int
    rows: int
    steps: int
    peak: float

    @property
    def tokens(self) -> int:
        """Tokens of the data, about: by its size, without the marks of JSON."""
        return round(sum(found.size for found in self.sources) / _TOKEN_BYTES)


def choose(
    name: str, directory: str, sources: Sequence[Inspected], preset: str, start_from: str | None
) -> Chosen:
    """Chooses lengths, steps and learning rate by the size of model and data.

    Raises:
      ConfigError: the preset is none, or of a model that does not predict the next token.
      CheckpointError: ``start_from`` holds no model.
    """
    if start_from is None:
        family, lines = _family_of_preset(preset), []
    else:
        family = family_in(open_source(start_from))
        lines = [f"Run.model = @{type(family).__name__}()", *bindings_of(family)]
    model = Model(family.decoder())
    if model.config.kind != "decoder":
        raise _not_a_decoder("--from", start_from or preset)
    small = model.parameter_count()["total"] < _SMALL
    meant_for = getattr(family, "max_length", 2048)  # a recurrence has none
    length = min(256 if small else 2048, model.max_length or 2048, meant_for)
    rows = 4 if small else 8
    total = sum(found.size for found in sources)
    epoch = total / _TOKEN_BYTES / (rows * length)
    pieces = _pieces(total, "".join(found.sample for found in sources))
    tokenizer = start_from or ("bytes" if family.vocab_size <= _BYTES else None)
    resized = tokenizer is None and pieces < family.vocab_size
    return Chosen(
        name=name,
        directory=directory,
        sources=tuple(sources),
        preset=None if start_from else preset,
        start_from=start_from,
        model=tuple(lines),
        tokenizer=tokenizer,
        vocab_size=pieces if resized else family.vocab_size,
        resized=f"{type(family).__name__}.vocab_size" if resized else None,
        length=length,
        rows=rows,
        steps=min(max(100 * round(epoch / 25), 100), 2000),
        peak=1e-4 if start_from else 6e-3 if small else 3e-4,
    )


def _family_of_preset(preset: str) -> Family:
    """Returns the model of a preset, by way of a run that has nothing else.

    Raises:
      ConfigError: it is no preset, or of a model that does not predict the next token.
    """
    bindings = [
        "Run.directory = 'none'",
        "Run.data = @Data()",
        "Data.store_dir = 'none'",
        "Data.tokenizer = 'none'",
        "Data.seqio_mixture = 'none'",
        "Loop.steps = 1",
        "Loop.batch_size = 1",
        "Loop.sequence_length = 16",
    ]
    try:
        family: Family = load_run(Flags([preset], bindings, [], [], []))[0].model
    except ConfigError as e:
        raise _not_a_decoder("--model", preset) if e.field == "Denoising.objective" else e from None
    return family


def _not_a_decoder(flag: str, value: str) -> ConfigError:
    return ConfigError(
        flag,
        value,
        "a decoder, which predicts the next token",
        "For other objectives begin with configs/recipes/bert_base.gin or t5_11b.gin.",
    )


def _pieces(size: int, sample: str) -> int:
    """Returns pieces that a tokenizer can learn of so many bytes: every character, and more."""
    wanted = max(size // _PIECE_BYTES, 512 + 5 * len(set(sample)) // 4)
    return -(-wanted // 128) * 128


def text(chosen: Chosen, language: str, file: str) -> str:
    """Returns the gin file, with comments in a language."""
    said = {
        key: value.format(file=file, chosen=chosen) for key, value in COMMENTS[language].items()
    }
    lines: list[str] = []

    def block(key: str, *bindings: str) -> None:
        lines.extend(f"# {line}".rstrip() for line in said[key].strip().splitlines())
        lines.extend([*bindings, ""])

    def bound(field: str, value: object) -> str:
        return f"{field} = {format_value(value, len(field) + 3)}"

    block("head")
    if chosen.start_from is None:
        resized = [bound(chosen.resized, chosen.vocab_size)] if chosen.resized else []
        block("resized" if resized else "preset", f"include {chosen.preset!r}", *resized)
    else:
        block("continued", *chosen.model, bound("Run.start_from", chosen.start_from))
    block("mesh", "include 'configs/meshes/local.gin'")
    block("directory", bound("Run.directory", chosen.directory))
    names = ", ".join(f"@{found.source.name}/Source()" for found in chosen.sources)
    names += "," if len(chosen.sources) == 1 else ""
    block(
        "data",
        bound("Data.name", chosen.name),
        bound("Data.store_dir", _store(chosen)),
        "Data.mixture = @Mixture()",
        f"Mixture.sources = ({names})",
        "Mixture.rates = 'proportional'",
    )
    for found in chosen.sources:
        source = found.source
        files = source.paths[0] if len(source.paths) == 1 else source.paths
        values = {"name": source.name, "files": files, "kind": source.kind}
        values |= {"field": source.field} if source.kind == "jsonl" else {"unit": source.unit}
        values |= {"language": source.language, "license": ""}
        lines.extend(bound(f"{source.name}/Source.{key}", value) for key, value in values.items())
        lines.append("")
    share = 0.05 if chosen.tokens < _FEW else 0.02
    block("held_out", bound("Data.validation_fraction", share))
    if chosen.tokenizer is None:
        trained = bound("TokenizerTraining.vocab_size", chosen.vocab_size)
        block("tokenizer", "Data.tokenizer = @TokenizerTraining()", trained)
    else:
        key = "their_tokenizer" if chosen.start_from else "bytes"
        block(key, bound("Data.tokenizer", chosen.tokenizer))
    block(
        "loop",
        bound("Loop.steps", chosen.steps),
        bound("Loop.batch_size", chosen.rows),
        bound("Loop.sequence_length", chosen.length),
        bound("Loop.microbatches", 1),
    )
    block(
        "optimizer",
        bound("Optimizer.name", "adamw"),
        bound("Schedule.name", "cosine"),
        bound("Schedule.peak", chosen.peak),
        bound("Schedule.warmup_steps", chosen.steps // 20),
    )
    every = chosen.steps // 4
    block("checkpoint", bound("CheckpointConfig.every_steps", every))
    prompts = tuple(dict.fromkeys(_prompt(found) for found in chosen.sources))
    block(
        "samples",
        bound("Loop.eval_every", every),
        bound("Samples.every", every),
        bound("Samples.prompts", prompts),
        bound("Sampling.max_tokens", 60),
        bound("Sampling.temperature", 0.8),
        bound("Sampling.top_p", 0.95),
    )
    block("export", bound("Export.enabled", True), bound("Export.dtype", "float32"))
    return "\n".join(lines)


def _store(chosen: Chosen) -> str:
    """Returns a directory beside the run, so that several runs may share its stores."""
    return os.path.join(os.path.dirname(chosen.directory.rstrip("/")), "data", chosen.name)


def _prompt(found: Inspected) -> str:
    """Returns the first words of a source."""
    line = next(line for line in found.sample.splitlines() if line.strip()).strip()
    return line[:4] if found.source.language == "zh" else " ".join(line.split()[:4])[:60]


def write(file: str, chosen: Chosen, language: str) -> None:
    """Writes the file, once what it says has been checked as a run is.

    Raises:
      ConfigError: the values do not make a run; nothing is left behind.
    """
    write_atomic(file, text(chosen, language, file))
    try:
        load_run(Flags([file], [], [], [], []))
    except Exception:
        as_path(file).unlink()
        raise
