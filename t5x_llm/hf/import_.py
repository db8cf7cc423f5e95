"""Import of Hugging Face directories and GGUF files, proved by a parity check."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf import parity
from t5x_llm.hf.mistaken import leftovers, prefix_found
from t5x_llm.hf.model_config import family_of, read_family
from t5x_llm.hf.reference import reference, why_not_transformers
from t5x_llm.hf.source import ModelSource, Weights, open_source, read_config
from t5x_llm.models.family import Family
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import Assembly, hf_shapes, unflatten

if TYPE_CHECKING:
    from t5x_llm.text import Tokenizer

__all__ = ["Imported", "family_of", "import_hf", "import_model", "read_config"]

# Buffers that old checkpoints carry: masks, rotary frequencies and positions, recomputed by every
# reader.
BUFFERS = re.compile(
    r"(rotary_emb\.inv_freq|\.(attn|attention)\.(bias|masked_bias)|\.position_ids)$"
)
# A tensor is made of at most so many parameters of ours.
_PARTS = 256


class Imported(NamedTuple):
    """A model taken in.

    Attributes:
      family: the preset dataclass.
      params: nested dict of float32 arrays.
      tokenizer: or None where the directory holds none.
      report: the parity check, or None if it was not asked for.
      generation: fields of generation_config.json, or what stands for it.
    """

    family: Family
    params: dict[str, Any]
    tokenizer: Tokenizer | None
    report: parity.ParityReport | None
    generation: dict[str, Any]


def import_hf(
    path: str | os.PathLike[str],
    place: Callable[[str, np.ndarray], Any] = lambda name, array: array,
) -> tuple[Any, dict[str, Any], Tokenizer | None]:
    """``import_model`` with its check, without the report: (family, params, tokenizer)."""
    return import_model(path, place=place)[:3]


def import_model(
    path: str | os.PathLike[str],
    *,
    check: bool = True,
    place: Callable[[str, np.ndarray], Any] = lambda name, array: array,
    build: Callable[[str, Assembly], Any] | None = None,
    ignore: Collection[str] = (),
) -> Imported:
    """Reads a model and proves that ours computes the same logits.

    Args:
      path: a Hugging Face directory with safetensors, or a ``.gguf`` file.
      check: run the parity gate; off only where the caller runs it itself.
      place: called with each finished parameter (dotted path, array), e.g. to put it on devices.
      build: called instead with (dotted path, the parameters to be made), where not even one whole
        parameter should be in memory.
      ignore: fields of config.json to read as if they were absent.

    Raises:
      CheckpointError: missing, damaged or malicious files; tensors unknown or of a wrong shape.
      ConfigError: a config.json field that the family does not know.
      ParityError: the logits differ.
    """
    source = open_source(path)
    tokenizer = source.tokenizer()
    family, notes = provable(source, ignore) if check else (family_in(source, ignore), ())
    check_tokenizer(tokenizer, family.vocab_size)
    weights = resolve(source.weights, family)
    report = None
    if check:
        report = parity.check_parity(
            parity.streamed_logits(family, weights.read),
            reference(source.path, source.config, weights.read, parity.count(family)),
            vocab_size=family.vocab_size,
            max_length=parity.max_length(family),
            long=parity.long_prompt(family),
            dtype=weights.stored,
        ).noted(notes)
        report.raise_if_failed(f"Import of {path}")
    abstract = Model(family.decoder()).abstract_params()
    assembly = Assembly(family.weight_map(), abstract, weights.read)
    build = build or (lambda path, assembly: place(path, assembly.make(path)))
    params = unflatten({path: build(path, assembly) for path in assembly.leaves})
    return Imported(family, params, tokenizer, report, source.generation())


def family_in(source: ModelSource, ignore: Collection[str] = ()) -> Family:
    """The family dataclass of a model on disk; raises as ``family_of``."""
    return family_of(source.config, ignore).fitted(source.weights.names())


def provable(source: ModelSource, ignore: Collection[str] = ()) -> tuple[Family, tuple[str, ...]]:
    """The family of a model that a reference will be compared with, and notes for its report.

    transformers reads the whole config.json: what equals its logits has understood enough of it, so
    fields unknown here are only noted. Our own references know no more fields than we do.

    Raises:
      UnknownField: naming fields that are not known, where transformers cannot compute the model.
      ConfigError: naming the model type, or the field whose value is not understood.
    """
    found = read_family(source.config, ignore)
    family = found.family.fitted(source.weights.names())
    if found.unknown:
        model_type = str(source.config.get("model_type"))
        if why_not_transformers(source.path, model_type, parity.count(family)) is not None:
            found.known()
    return family, found.note()


def check_tokenizer(tokenizer: Tokenizer | None, vocab_size: int) -> None:
    """Raises ConfigError if the tokenizer has more tokens than the model."""
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise ConfigError(
            "vocab_size",
            vocab_size,
            f"at least the tokenizer's {tokenizer.vocab_size}",
            "Model and tokenizer do not belong together, or the vocabulary was not resized.",
        )


class NamedTensors:
    """The tensors of a family by the names of its weight map, whatever they are called on disk.

    Attributes:
      shapes: of every tensor, in the order of the weight map.
      stored: the dtype of most of them, by name.
    """

    def __init__(self, weights: Weights, shapes: dict[str, tuple[int, ...]], alias: dict[str, str]):
        self._weights, self.shapes, self._alias = weights, shapes, alias
        sizes: dict[str, int] = {}
        for name in shapes:
            dtype = self.dtype(name).name
            sizes[dtype] = sizes.get(dtype, 0) + int(np.prod(shapes[name], dtype=np.int64))
        self.stored = max(sizes, key=sizes.__getitem__)

    def stored_name(self, name: str) -> str:
        """Returns the name that a tensor has on disk."""
        return self._alias[name]

    def dtype(self, name: str) -> np.dtype[Any]:
        """Returns the dtype in which a tensor is stored."""
        return self._weights.dtype(self._alias[name])

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        return self._weights.read(self._alias[name])


def resolve(weights: Weights, family: Family) -> NamedTensors:
    """The tensors of ``family``, after every stored one has been accounted for; reads none.

    Files saved from the bare model lack the first component of each name (``transformer.``); tied
    tensors may be stored once, under any of their names, or several times, and must then be equal.
    The family knows older names, and tensors that it has no use for.

    Raises:
      CheckpointError: naming tensors that are missing, of another shape, or that the family does
        not know.
      ConfigError: the sizes of config.json make no model.
    """
    stored = weights.names()
    entries = family.weight_map()
    try:
        abstract = Model(family.decoder()).abstract_params()
    except (TypeError, ValueError, ArithmeticError) as e:
        raise ConfigError("config.json", family.hf_type, f"sizes that make a model ({e})") from e
    shapes = hf_shapes(entries, abstract, limit=_PARTS * (len(stored) + 1))
    held = set(stored)
    copies = family.copies()
    alias = {name: _stored_name(name, family, copies, held) for name in shapes}
    missing = [name for name in shapes if alias[name] not in held]
    if missing:
        why = prefix_found(missing, held) or leftovers(stored)
        if not why and missing == ["lm_head.weight"]:
            why = "Where the head is the embedding, config.json says tie_word_embeddings = true."
        raise CheckpointError(
            f"{len(missing)} of {len(shapes)} tensors are missing, e.g. {', '.join(missing[:3])}. "
            f"{why}".rstrip()
        )
    for name, shape in shapes.items():
        if (real := weights.shape(alias[name])) != shape:
            raise CheckpointError(
                f"Tensor {alias[name]} of shape {list(real)} does not fit: a {family.hf_type} of "
                f"this config.json has {list(shape)}."
            )
    known = set(alias.values())
    extra = [name for name in stored if name not in known and not BUFFERS.search(name)]
    if family.UNUSED:
        extra = [name for name in extra if not re.search(family.UNUSED, name)]
    written = {spelt: name for name in copies for spelt in _spellings(name, family.OLD_NAMES)}
    for name in [name for name in extra if name in written]:
        if not _equal(weights, name, alias[copies[written[name]]]):
            raise CheckpointError(
                f"{name} differs from {alias[copies[written[name]]]}, yet the config says that "
                "they are tied."
            )
        extra.remove(name)
    if extra:
        raise CheckpointError(
            f"{len(extra)} tensors have no place in a {family.hf_type} model of this config, "
            f"e.g. {', '.join(extra[:3])}. {leftovers(extra)}".rstrip()
        )
    return NamedTensors(weights, shapes, alias)


def _stored_name(
    name: str, family: Family, copies: Mapping[str, str], held: Collection[str]
) -> str:
    """Returns under which name a file holds a tensor; ``name`` itself where it does not.

    Of tied tensors a file may hold any one alone: safetensors stores shared memory once, under the
    name that its writer met first or last.
    """
    tied = (copy for copy, kept in copies.items() if kept == name)
    for whole in (name, *tied):
        if found := next((n for n in _spellings(whole, family.OLD_NAMES) if n in held), None):
            return found
    return name


def _spellings(name: str, old: Mapping[str, str]) -> Iterator[str]:
    """Yields the names that a tensor may have in a file, the likeliest first."""
    endings = ((new, before) for new, before in old.items() if name.endswith(new))
    for whole in (name, *(name.removesuffix(new) + before for new, before in endings)):
        yield whole
        yield whole.partition(".")[2]


def _equal(weights: Weights, a: str, b: str) -> bool:
    return weights.shape(a) == weights.shape(b) and np.array_equal(weights.read(a), weights.read(b))
