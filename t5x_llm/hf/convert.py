"""A model from elsewhere as a clean Hugging Face directory, one tensor in memory at a time.

The result is a Hugging Face directory and not a run's checkpoint: training starts from one
(``Run.start_from``), ``generate`` and ``eval`` read it, and so does everybody else's software. A
checkpoint would bind it to one optimizer and one mesh.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from t5x_llm.checkpoint.reader import buffers_given_back
from t5x_llm.core.errors import ParityError, check_choice, check_count
from t5x_llm.hf import parity
from t5x_llm.hf.card import FILE as README
from t5x_llm.hf.card import CardFacts, model_card
from t5x_llm.hf.export import (
    DTYPES,
    MAX_SHARD_BYTES,
    gate,
    narrowed,
    special_ids,
    write_configs,
)
from t5x_llm.hf.generation import within
from t5x_llm.hf.import_ import check_tokenizer, provable, resolve
from t5x_llm.hf.reference import NoReference
from t5x_llm.hf.safetensors_io import SafetensorsReader
from t5x_llm.hf.safetensors_write import TensorSpec, new_directory, write_safetensors
from t5x_llm.hf.source import ModelSource, open_source, read_config
from t5x_llm.models.family import Family

if TYPE_CHECKING:
    from t5x_llm.text import Tokenizer

STORED = "stored"
CARD_SECTIONS = (
    (
        "Limits",
        "The weights are another model's in another form: what its makers say of its purpose, its "
        "limits and\nits licence holds here too.",
    ),
)


class Converted(NamedTuple):
    """Result of a conversion.

    Attributes:
      family: the preset dataclass.
      has_tokenizer: whether a tokenizer lies with it.
      report: the parity check of source and result.
    """

    family: Family
    has_tokenizer: bool
    report: parity.ParityReport


def convert(
    path: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    kind: str | None = None,
    dtype: str = STORED,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    unproved: bool = False,
    ignore: Collection[str] = (),
) -> Converted:
    """Reads a model, proves our reading of it, and writes it.

    Two comparisons with a reference: of the source as we read it, and of what was written. Every
    tensor is read back and compared with the source bit for bit, after rounding where ``dtype``
    rounds.

    Args:
      path: a Hugging Face directory or a ``.gguf`` file.
      out_dir: new, empty, or an earlier export.
      kind: 'hf' or 'gguf' where the user says which it is to be.
      dtype: of the written weights; 'stored' keeps each tensor's (float32 where it was quantised).
      max_shard_bytes: limit on the data of one safetensors file.
      unproved: write the model even if nothing here can compute it; the report says so.
      ignore: fields of config.json to read as if they were absent.

    Raises:
      ConfigError: a field of config.json that the family does not know; ``out_dir`` cannot be
        written.
      CheckpointError: missing, damaged or malicious files; tensors unknown or of a wrong shape.
      ParityError: the logits differ.
    """
    check_choice("dtype", dtype, (STORED, *DTYPES))
    check_count("max_shard_bytes", max_shard_bytes, low=1)
    source = open_source(path, kind)
    family, notes = provable(source, ignore)
    tokenizer = source.tokenizer()
    check_tokenizer(tokenizer, family.vocab_size)
    weights = resolve(source.weights, family)
    layouts = {
        name: TensorSpec(weights.dtype(name) if dtype == STORED else DTYPES[dtype], shape)
        for name, shape in weights.shapes.items()
    }
    title = weights.stored if dtype == STORED else dtype
    first: parity.ParityReport | None = None
    try:
        with buffers_given_back():
            first = gate(source.path, source.config, family, weights.read, weights.stored, unproved)
        first.raise_if_failed(f"Import of {path}")
    except NoReference as e:
        if source.kind != "gguf":
            raise
        notes += (f"Compared as the directory that was written, not as {source.path.name}. {e}",)

    def make(name: str) -> np.ndarray:
        return narrowed(name, weights.read(name), layouts[name].dtype)

    report = write_directory(
        out_dir,
        family,
        layouts,
        make,
        tokenizer=tokenizer,
        ids=ids_of(source, tokenizer, family.vocab_size),
        generation=source.generation(),
        dtype=title,
        max_shard_bytes=max_shard_bytes,
        unproved=unproved,
        origin=f"Converted by t5x_llm from {source.path.name}",
        earlier=first,
        notes=notes,
        front=source.card(),
    )
    return Converted(family, tokenizer is not None, report)


def write_directory(
    out_dir: str | os.PathLike[str],
    family: Family,
    layouts: Mapping[str, TensorSpec],
    make: Callable[[str], np.ndarray],
    *,
    tokenizer: Tokenizer | None,
    ids: Mapping[str, Any],
    generation: Mapping[str, Any],
    dtype: str,
    max_shard_bytes: int,
    unproved: bool,
    origin: str,
    earlier: parity.ParityReport | None = None,
    notes: tuple[str, ...] = (),
    front: Mapping[str, Any] | None = None,
) -> parity.ParityReport:
    """Writes a model tensor by tensor, reads every bit back, and compares logits.

    Args:
      out_dir: new, empty, or an earlier export.
      family: what the tensors make.
      layouts: of every tensor by the names of the family's weight map.
      make: name to array; called twice each, and gives the same.
      tokenizer: written with it, or None.
      ids: fields of config.json that name special tokens.
      generation: fields of generation_config.json.
      dtype: of the weights, in a word.
      max_shard_bytes: limit on the data of one safetensors file.
      unproved: as ``convert``.
      origin: first words of the model card.
      earlier: a check of the source, to go into the report.
      notes: to go into the report too.
      front: front matter of the model card: what the original's says, licence included.
    """
    with buffers_given_back(), new_directory(out_dir) as draft:
        write_configs(draft, family, ids, dtype, generation)
        write_safetensors(draft, layouts, make, max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save(draft)
        reader = SafetensorsReader(draft)
        for name in layouts:
            if not same_bits(reader.read(name), make(name)):
                raise ParityError(f"{name} reads back changed from {draft}. Nothing was written.")
        report = gate(draft, read_config(draft), family, reader.read, dtype, unproved)
        report.raise_if_failed(f"Writing {out_dir}")
        if earlier is not None:
            report = _joined(earlier, report)
        report = dataclasses.replace(report, notes=report.notes + notes)
        report.write(draft)
        facts = CardFacts(origin, dict(front or {}), CARD_SECTIONS)
        (draft / README).write_text(model_card(family, report, facts), encoding="utf-8")
    return report


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Returns True where two arrays are the same to the bit, NaNs included."""
    flat = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return (a.dtype, a.shape) == (b.dtype, b.shape) and np.array_equal(*flat)


def _joined(source: parity.ParityReport, written: parity.ParityReport) -> parity.ParityReport:
    prompts = {f"source {name}": prompt for name, prompt in source.prompts.items()}
    notes = tuple(dict.fromkeys(source.notes + written.notes))
    return dataclasses.replace(written, prompts=written.prompts | prompts, notes=notes)


def ids_of(source: ModelSource, tokenizer: Tokenizer | None, vocab_size: int) -> dict[str, Any]:
    """Returns the fields of config.json that name special tokens.

    They are as they stand in the source, lists too; where it names none of the vocabulary, the
    tokenizer's.
    """
    said = {k: within(source.config.get(k), vocab_size) for k in special_ids(None)}
    return {k: v if said[k] is None else said[k] for k, v in special_ids(tokenizer).items()}
