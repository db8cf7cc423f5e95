"""A Hugging Face model with another vocabulary size."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.hf import parity
from t5x_llm.hf.convert import ids_of, write_directory
from t5x_llm.hf.export import MAX_SHARD_BYTES
from t5x_llm.hf.import_ import check_tokenizer, family_in, resolve
from t5x_llm.hf.safetensors_write import TensorSpec
from t5x_llm.hf.source import open_source
from t5x_llm.models.model import Model
from t5x_llm.models.vocabulary import Growth, resized, rounded_up
from t5x_llm.models.weight_map import hf_shapes
from t5x_llm.text.companions import inherited

if TYPE_CHECKING:
    from t5x_llm.text import Tokenizer


def resize(
    path: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
    multiple: int = 1,
    growth: Growth | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    unproved: bool = False,
) -> tuple[int, int, parity.ParityReport]:
    """Writes a model with rows for another tokenizer, or so many rows.

    Rows of tokens keep every bit, so logits over old tokens stay what they were (probabilities do
    not: more tokens share them). One tensor is in memory at a time.

    Args:
      path: a Hugging Face directory.
      out_dir: new, empty, or an earlier export.
      tokenizer: the new one, in which every old id means what it meant; or None to keep the old.
      vocab_size: rows wanted; the tokenizer's if None.
      multiple: rows are padded to a multiple of it.
      growth: how new rows begin.
      max_shard_bytes: limit on the data of one safetensors file.
      unproved: as ``convert``.

    Returns:
      The old and the new number of rows, and the parity report.

    Raises:
      ConfigError: too few rows for the tokenizer, or one that gives old ids another meaning.
    """
    growth = growth or Growth()
    check_number("multiple", multiple, low=1, integer=True)
    source = open_source(path, "hf")
    family = family_in(source)
    before, weights = source.tokenizer(), resolve(source.weights, family)
    after = tokenizer or before
    if vocab_size is None:
        if after is None:
            raise ConfigError("vocab_size", None, "a number: no tokenizer says how many")
        vocab_size = after.vocab_size
    check_number("vocab_size", vocab_size, low=1, integer=True)
    size = rounded_up(vocab_size, multiple)
    known = family.vocab_size if before is None else min(before.vocab_size, family.vocab_size)
    check_tokenizer(after, size)
    pieces: dict[int, list[int]] = {}
    if tokenizer is not None and before is not None:
        check_old_ids(before, tokenizer)
        after = tokenizer.with_companions(inherited(before.companions, tokenizer.companions))
        if growth.how == "subpieces":
            pieces = subpieces(before, tokenizer, growth.leading_space)
    elif growth.how == "subpieces":
        raise ConfigError(
            "how", growth.how, "mean, noise or random unless there is an old and a new tokenizer"
        )
    wider = dataclasses.replace(family, vocab_size=size)
    abstract = Model(wider.decoder()).abstract_params()
    shapes = hf_shapes(wider.weight_map(), abstract)
    axes = _axes(weights.shapes, shapes, family.vocab_size, size)
    layouts = {name: TensorSpec(weights.dtype(name), shape) for name, shape in shapes.items()}

    def make(name: str) -> np.ndarray:
        array = weights.read(name)
        if name not in axes:
            return array
        rows = np.moveaxis(array, axes[name], 0)
        return np.moveaxis(resized(rows, size, growth, known, pieces), 0, axes[name])

    report = write_directory(
        out_dir,
        wider,
        layouts,
        make,
        tokenizer=after,
        ids=ids_of(source, after, size),
        generation=source.generation(),
        dtype=weights.stored,
        max_shard_bytes=max_shard_bytes,
        unproved=unproved,
        front=source.card(),
        origin=f"{source.path.name} with {size} instead of {family.vocab_size} rows, new ones "
        f"begun as '{growth.how}' by t5x_llm,",
    )
    return family.vocab_size, size, report


def _axes(
    old: Mapping[str, tuple[int, ...]], new: Mapping[str, tuple[int, ...]], before: int, after: int
) -> dict[str, int]:
    """Returns the vocabulary's axis of each tensor that has one: the axis where shapes differ."""
    axes = {}
    for name, shape in new.items():
        differ = [i for i, (a, b) in enumerate(zip(old[name], shape, strict=True)) if a != b]
        if not differ:
            continue
        if len(differ) > 1 or (old[name][differ[0]], shape[differ[0]]) != (before, after):
            raise ConfigError(
                "vocab_size", after, f"a model whose {name} is {list(old[name])}, not {list(shape)}"
            )
        axes[name] = differ[0]
    return axes


def check_old_ids(before: Tokenizer, after: Tokenizer) -> None:
    """Raises ConfigError unless every id of ``before`` is the same text in ``after``."""
    if after.vocab_size < before.vocab_size:
        raise ConfigError(
            "tokenizer", f"{after.vocab_size} tokens", f"at least the old one's {before.vocab_size}"
        )
    for i in range(before.vocab_size):
        was, now = (t.special.get(i) or t.decode([i]) for t in (before, after))
        # One spells a space as it is, the other as SentencePiece does.
        if was.replace("\u2581", " ") != now.replace("\u2581", " ") or (
            (i in before.special) != (i in after.special)
        ):
            raise ConfigError(
                "tokenizer",
                f"id {i} = {now!r}",
                f"{was!r}, as in the old one",
                "A model keeps what it knows of a token by its id: grow the old tokenizer.",
            )


def subpieces(
    before: Tokenizer, after: Tokenizer, leading_space: bool = False
) -> dict[int, list[int]]:
    """New id to the old ids that it is written with in the middle of a text.

    Args:
      before: the old tokenizer.
      after: the new one; if it is of another kind, ids without text have none.
      leading_space: as at the start of a text instead.
    """
    new = range(before.vocab_size, after.vocab_size)
    if type(before) is type(after) and not leading_space:
        spelled = {i: before.spell(after.piece(i)) for i in new if after.piece(i)}
        return {i: ids for i, ids in spelled.items() if ids}
    texts: Sequence[str] = [after.decode([i]) for i in new]
    encoded: list[list[int]] = before.encode_batch(texts)
    return {
        i: ids
        for i, text, ids in zip(new, texts, encoded, strict=True)
        if ids and "\ufffd" not in text
    }
