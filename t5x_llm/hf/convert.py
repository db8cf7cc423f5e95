"""A model from elsewhere as a clean Hugging Face directory, one tensor in memory at a time.

The result is a Hugging Face directory and not a run's checkpoint: training starts from one
(``Run.start_from``), ``generate`` and ``eval`` read it, and so does everybody else's software. A
checkpoint would bind it to one optimizer and one mesh.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from t5x_llm.core.errors import ParityError, check_choice, check_number
from t5x_llm.hf import parity
from t5x_llm.hf.export import (
    DTYPES,
    MAX_SHARD_BYTES,
    gate,
    model_card,
    narrowed,
    special_ids,
    write_configs,
)
from t5x_llm.hf.import_ import check_tokenizer, family_of, resolve
from t5x_llm.hf.safetensors_io import SafetensorsReader
from t5x_llm.hf.safetensors_write import Layout, new_directory, write_safetensors
from t5x_llm.hf.source import Source, open_source, read_config

STORED = "stored"


class Converted(NamedTuple):
    """What was written.

    Attributes:
      family: the preset dataclass.
      has_tokenizer: whether a tokenizer lies with it.
      report: the parity check of source and result.
    """

    family: Any
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

    Raises:
      ConfigError: a field of config.json that the family does not know; ``out_dir`` cannot be
        written.
      CheckpointError: missing, damaged or malicious files; tensors unknown or of a wrong shape.
      ParityError: the logits differ.
    """
    check_choice("dtype", dtype, (STORED, *DTYPES))
    check_number("max_shard_bytes", max_shard_bytes, low=1, integer=True)
    source = open_source(path, kind)
    family = family_of(source.config)
    tokenizer = source.tokenizer()
    check_tokenizer(tokenizer, family.vocab_size)
    weights = resolve(source.weights, family)
    layouts = {
        name: Layout(weights.dtype(name) if dtype == STORED else DTYPES[dtype], shape)
        for name, shape in weights.shapes.items()
    }
    title = weights.stored if dtype == STORED else dtype
    first = gate(source.path, source.config, family, weights.read, weights.stored, unproved)
    first.raise_if_failed(f"Import of {path}")

    def make(name: str) -> np.ndarray:
        return narrowed(name, weights.read(name), layouts[name].dtype)

    with new_directory(out_dir) as draft:
        write_configs(draft, family, _ids(source, tokenizer), title)
        write_safetensors(draft, layouts, make, max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save(draft)
        reader = SafetensorsReader(draft)
        for name in layouts:
            if reader.read(name).tobytes() != make(name).tobytes():
                raise ParityError(f"{name} reads back changed from {draft}. Nothing was written.")
        report = gate(draft, read_config(draft), family, reader.read, title, unproved)
        report.raise_if_failed(f"Import of {path}, as written,")
        report = _joined(first, report)
        report.write(draft)
        origin = f"Converted by t5x_llm from {pathlib.Path(path).name}"
        (draft / "README.md").write_text(model_card(family, report, origin), encoding="utf-8")
    return Converted(family, tokenizer is not None, report)


def _joined(source: parity.ParityReport, written: parity.ParityReport) -> parity.ParityReport:
    prompts = {f"source {name}": prompt for name, prompt in source.prompts.items()}
    notes = tuple(dict.fromkeys(source.notes + written.notes))
    return dataclasses.replace(written, prompts=written.prompts | prompts, notes=notes)


def _ids(source: Source, tokenizer: Any) -> dict[str, Any]:
    """Ids of the special tokens: the tokenizer's, or what the config says."""
    theirs = special_ids(tokenizer)
    return {k: source.config.get(k) if v is None else v for k, v in theirs.items()}
