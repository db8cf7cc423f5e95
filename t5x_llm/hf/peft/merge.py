"""A base and its adapter as one model: summed in float32, rounded once, with the drift stated."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from t5x_llm.core.errors import ConfigError, ParityError, check_choice, check_number
from t5x_llm.hf import parity
from t5x_llm.hf.convert import STORED, ids_of, write_directory
from t5x_llm.hf.export import DTYPES, MAX_SHARD_BYTES, narrowed
from t5x_llm.hf.import_ import check_tokenizer, family_in, resolve
from t5x_llm.hf.peft.base_mark import check_mark
from t5x_llm.hf.peft.fitting import check_fits
from t5x_llm.hf.peft.layout import linear_layers
from t5x_llm.hf.peft.numpy_reader import AdaptedTensors
from t5x_llm.hf.peft.read import PeftAdapter, open_adapter
from t5x_llm.hf.safetensors_write import TensorSpec
from t5x_llm.hf.source import open_source
from t5x_llm.models.family import Family, changed
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import hf_shapes

MAX_KL = 0.01


class Merged(NamedTuple):
    """A merged model.

    Attributes:
      report: the parity check of what was written.
      drift: the written model against base and adapter before rounding.
      effect: base and adapter against the base alone.
      tensors: how many the adapter changed.
    """

    report: parity.ParityReport
    drift: parity.PromptParity
    effect: parity.PromptParity
    tensors: int

    def summary(self) -> str:
        """Returns a line for people."""
        return (
            f"{self.tensors} tensors changed; rounding moves logits by {self.drift.max_abs:.2g} at "
            f"most, KL {self.drift.kl_mean:.2g} nats a token (the adapter itself: "
            f"{self.effect.kl_mean:.2g}); {self.report.summary()}"
        )


def merge_adapter(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | PeftAdapter,
    out_dir: str | os.PathLike[str],
    *,
    dtype: str = STORED,
    untie: bool = False,
    max_kl: float = MAX_KL,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    unproved: bool = False,
) -> Merged:
    """Writes base and adapter as one Hugging Face directory; one tensor is in memory at a time.

    Args:
      base: a Hugging Face directory.
      adapter: a PEFT directory, or one that was read.
      out_dir: new, empty, or an earlier export.
      dtype: of the result; 'stored' keeps each of the base's tensors'.
      untie: give the model a head of its own where the adapter changes a head that is tied to the
        embedding, or the embedding alone.
      max_kl: nats a token by which rounding may move the mean; more is refused.
      max_shard_bytes: limit on the data of one safetensors file.
      unproved: as ``convert``.

    Raises:
      ConfigError: the method cannot be merged, or the head is tied and ``untie`` is False.
      CheckpointError: the adapter is of another base, or damaged.
      ParityError: rounding moves the model by more than ``max_kl``; nothing is written.
    """
    check_choice("dtype", dtype, (STORED, *DTYPES))
    check_number("max_kl", max_kl, above=0)
    source = open_source(base)
    family = family_in(source)
    tokenizer = source.tokenizer()
    check_tokenizer(tokenizer, family.vocab_size)
    weights = resolve(source.weights, family)
    if isinstance(adapter, PeftAdapter):
        found = adapter
    else:
        found = open_adapter(adapter)
        check_mark(adapter, weights.read, weights.shapes, str(source.path))
    layers = linear_layers(family)
    found = check_fits(found, layers, weights.shapes)
    merged = AdaptedTensors(found, weights.read, dtype=np.float32)
    family, merged = _untied(family, found, merged, untie)
    shapes = hf_shapes(family.weight_map(), Model(family.decoder()).abstract_params())
    copies = {copy: kept for copy, kept in merged.tied.items() if copy in shapes}
    layouts = {
        name: TensorSpec(
            weights.dtype(copies.get(name, name)) if dtype == STORED else DTYPES[dtype], shape
        )
        for name, shape in shapes.items()
    }

    def make(name: str) -> np.ndarray:
        return narrowed(name, merged.read(name), layouts[name].dtype)

    def plain(name: str) -> np.ndarray:
        return weights.read(copies.get(name, name))

    drift, effect = _drift(family, merged.read, make, plain)
    if not drift.kl_mean <= max_kl:
        raise ParityError(
            f"Merging into {dtype} weights moves the model by KL {drift.kl_mean:.3g} nats a token "
            f"and logits by up to {drift.max_abs:.3g}; allowed is {max_kl:g}. Nothing was written. "
            "Write float32 (--dtype float32), keep the adapter apart, or allow more (--max_kl)."
        )
    notes = (
        f"Merged in float32 and rounded once: KL {drift.kl_mean:.3g} nats a token, largest logit "
        f"difference {drift.max_abs:.3g}, on {drift.tokens} tokens.",
    )
    name = "an adapter" if isinstance(adapter, PeftAdapter) else os.path.basename(str(adapter))
    report = write_directory(
        out_dir,
        family,
        layouts,
        make,
        tokenizer=tokenizer,
        ids=ids_of(source, tokenizer, family.vocab_size),
        generation=source.generation(),
        dtype=weights.stored if dtype == STORED else dtype,
        max_shard_bytes=max_shard_bytes,
        unproved=unproved,
        origin=f"Merged by t5x_llm ({source.path.name} and {name})",
        notes=notes,
        front=source.card(),
    )
    return Merged(report, drift, effect, len(merged.changed()))


def _untied(
    family: Family, found: PeftAdapter, merged: AdaptedTensors, untie: bool
) -> tuple[Family, AdaptedTensors]:
    """The family and the tensors with a head of its own where only one of two tied is adapted."""
    copies = family.copies()
    if "lm_head.weight" not in copies:
        return family, merged
    table = copies["lm_head.weight"]
    touched = {"lm_head.weight", table}.intersection(merged.changed())
    if not touched:
        return family, merged
    if not untie or not dataclasses.replace(family).decoder().tied:
        raise ConfigError(
            "adapter",
            sorted(touched)[0],
            f"no change of it, as lm_head.weight and {table} are one tensor",
            "Merged into it, the adapter would change the other too. --untie writes a model whose "
            "head is a tensor of its own.",
        )
    free: Family = changed(family, tied=False)
    return free, AdaptedTensors(found, merged.base, {"lm_head.weight": table}, np.float32)


def _drift(
    family: Family,
    exact: Callable[[str], np.ndarray],
    rounded: Callable[[str], np.ndarray],
    plain: Callable[[str], np.ndarray],
) -> tuple[parity.PromptParity, parity.PromptParity]:
    """Compares the rounded model with the exact one, and that with the base, on a long prompt."""
    length = min(parity.LONG, parity.max_length(family) or parity.LONG)
    tokens = np.random.default_rng(0).integers(0, family.vocab_size, length).astype(np.int32)
    first = parity.streamed_logits(family, exact)(tokens)
    return (
        parity.compare(parity.streamed_logits(family, rounded)(tokens), first),
        parity.compare(parity.streamed_logits(family, plain)(tokens), first),
    )
