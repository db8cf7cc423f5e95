"""Export to a Hugging Face directory that transformers loads, proved by a parity check."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from t5x_llm.checkpoint.reader import buffers_given_back
from t5x_llm.core.errors import (
    CheckpointError,
    ConfigError,
    ParityError,
    check_choice,
    check_count,
)
from t5x_llm.hf import parity
from t5x_llm.hf.card import FILE as README
from t5x_llm.hf.card import CardFacts, model_card
from t5x_llm.hf.generation import IDS, end_ids, within
from t5x_llm.hf.import_ import check_tokenizer
from t5x_llm.hf.reference import NoReference, reference
from t5x_llm.hf.safetensors_io import SafetensorsReader
from t5x_llm.hf.safetensors_write import TensorSpec, new_directory, write_safetensors
from t5x_llm.hf.source import read_config
from t5x_llm.models.family import Family
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import Assembly, flatten, hf_shapes, stacked, to_hf

if TYPE_CHECKING:
    from t5x_llm.text import Tokenizer

MAX_SHARD_BYTES = 5_000_000_000
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
SPECIAL = ("bos", "eos", "pad")


def export_hf(
    params: Mapping[str, Any],
    family: Family,
    tokenizer: Tokenizer | None,
    out_dir: str | os.PathLike[str],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: str = "float32",
    unproved: bool = False,
    generation: Mapping[str, Any] | None = None,
    card: CardFacts | None = None,
) -> parity.ParityReport:
    """Writes config, weights, tokenizer, generation config, model card and parity report.

    Everything is written to a directory beside ``out_dir``, checked there, and renamed; a failure
    at any point leaves nothing, and an earlier export untouched. One tensor is in memory at a time
    while weights are written, one layer while logits are compared, besides what ``params`` holds
    and, where transformers is the reference, its model.

    Args:
      params: parameter tree of NumPy or JAX arrays, or of TensorStore's, which are read in slices.
      family: the preset dataclass.
      tokenizer: saved with the model if given.
      out_dir: new, empty, or an earlier export.
      max_shard_bytes: limit on the data of one safetensors file.
      dtype: of the stored weights.
      unproved: write the model even if nothing here can compute it; the report says so.
      generation: fields of generation_config.json besides the tokenizer's special tokens, of the
        model that this one was trained from.
      card: what the model card says of how the model was made.

    Raises:
      ConfigError: ``out_dir`` cannot be written, or ``tokenizer`` does not fit the model.
      ParityError: the written model does not compute what ours does.
    """
    check_choice("dtype", dtype, DTYPES)
    check_count("max_shard_bytes", max_shard_bytes, low=1)
    check_tokenizer(tokenizer, family.vocab_size)
    _check_shapes(params, family)
    shapes = hf_shapes(family.weight_map(), params)
    layouts = {name: TensorSpec(DTYPES[dtype], shape) for name, shape in shapes.items()}
    makers = dict(to_hf(family.weight_map(), params))
    with buffers_given_back(), new_directory(out_dir) as draft:
        ids = special_ids(tokenizer)
        if ids["eos_token_id"] in end_ids(generation or {}, family.vocab_size):
            ids["eos_token_id"] = (generation or {})["eos_token_id"]
        write_configs(draft, family, ids, dtype, generation)
        write_safetensors(
            draft,
            layouts,
            lambda name: narrowed(name, makers[name](), DTYPES[dtype]),
            max_shard_bytes,
        )
        if tokenizer is not None:
            tokenizer.save(draft)
        reader = SafetensorsReader(draft)
        _check_written(draft, reader, params, family, DTYPES[dtype])
        report = gate(draft, read_config(draft), family, reader.read, dtype, unproved)
        report.raise_if_failed(f"Export to {out_dir}")
        report.write(draft)
        facts = card or CardFacts("Trained with t5x_llm and exported")
        (draft / README).write_text(model_card(family, report, facts), encoding="utf-8")
    return report


def special_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The fields of config.json that name special tokens."""
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_id", None) for name in SPECIAL}


def write_configs(
    draft: pathlib.Path,
    family: Family,
    ids: Mapping[str, Any],
    dtype: str,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json and generation_config.json.

    Args:
      draft: the directory.
      family: what config.json describes.
      ids: fields of config.json that name special tokens; an id, or a list of them.
      dtype: of the weights.
      generation: further fields of generation_config.json, and ids that it gives otherwise.
    """
    own = family.to_hf_config()
    for name in own.keys() & ids.keys():
        if ids[name] not in (None, own[name]):
            raise ConfigError(
                f"config.json {name}", own[name], f"{ids[name]}, the tokenizer's",
                f"The weights of a {type(family).__name__} belong to that id.",
            )  # fmt: skip
    config = {**ids, **own, "dtype": dtype, "use_cache": True}
    settings = {name: value for name, value in ids.items() if value is not None}
    settings |= {k: v for k, v in own.items() if k == "decoder_start_token_id"}
    for name, value in (generation or {}).items():
        kept = within(value, family.vocab_size) if name in IDS else value
        if name not in IDS or kept is not None:
            settings[name] = kept
    for name, value in (("config", config), ("generation_config", settings)):
        (draft / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")


def narrowed(name: str, array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """``array`` in another dtype.

    Raises:
      ParityError: it holds what is not finite, or becomes so.
    """
    with np.errstate(over="ignore"):
        out = array.astype(dtype, copy=False)
    flat = out.reshape(-1)
    for first in range(0, flat.size, _CHUNK):
        if not np.all(np.isfinite(flat[first : first + _CHUNK].astype(np.float32))):
            raise ParityError(
                f"{name}: values that are not finite in {dtype.name}. Nothing was written."
            )
    return out


_CHUNK = 1 << 22


def _check_shapes(params: Mapping[str, Any], family: Family) -> None:
    abstract = Model(family.decoder()).abstract_params()
    expected = {k: tuple(v.shape) for k, v in flatten(abstract).items()}
    found = {k: tuple(v.shape) for k, v in flatten(params).items()}
    if expected != found:
        wrong = sorted(k for k in expected | found if expected.get(k) != found.get(k))[0]
        raise CheckpointError(
            f"Parameter {wrong}: {type(family).__name__} expects shape {expected.get(wrong)}, "
            f"found {found.get(wrong)}."
        )


def _check_written(
    draft: pathlib.Path,
    reader: SafetensorsReader,
    params: Mapping[str, Any],
    family: Family,
    dtype: np.dtype[Any],
) -> None:
    """Reads the files back as ours and compares every bit with ``params``, a layer at a time."""
    abstract = Model(family.decoder()).abstract_params()
    assembly = Assembly(family.weight_map(), abstract, reader.read)
    for path, ours in flatten(params).items():
        for repeat in range(ours.shape[0]) if stacked(path) else [None]:
            part = ours if repeat is None else ours[repeat]
            expected = np.asarray(part, np.float32).astype(dtype).astype(np.float32)
            if not np.array_equal(assembly.make(path, repeat), expected):
                raise ParityError(f"{path} reads back changed from {draft}. Nothing was written.")


def gate(
    path: pathlib.Path,
    config: Mapping[str, Any],
    family: Family,
    read: Callable[[str], np.ndarray],
    dtype: str,
    unproved: bool,
) -> parity.ParityReport:
    """Our logits of a model on disk against a reference's, with one layer in memory at a time.

    Args:
      path: a Hugging Face directory or a ``.gguf`` file.
      config: its config.json.
      family: our reading of that.
      read: tensors by the names of the family's weight map.
      dtype: of the stored weights.
      unproved: go without where there is no reference.

    Raises:
      NoReference: nothing here can compute this model, and ``unproved`` is False.
    """
    try:
        return parity.check_parity(
            parity.streamed_logits(family, read),
            reference(path, config, read, parity.count(family)),
            vocab_size=family.vocab_size,
            max_length=parity.max_length(family),
            long=parity.long_prompt(family),
            dtype=dtype,
        )
    except NoReference as e:
        if not unproved:
            raise NoReference(f"{e} To write it all the same: --unproved.") from e
        return parity.unproved(str(e), dtype)
