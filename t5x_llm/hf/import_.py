"""Import of Hugging Face directories and GGUF files, proved by a parity check."""

from __future__ import annotations

import os
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf import parity
from t5x_llm.hf.reference import reference
from t5x_llm.hf.safetensors_io import SafetensorsReader, parse_json
from t5x_llm.models.families import FAMILIES
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import Entry, from_hf, hf_sizes

if TYPE_CHECKING:
    from t5x_llm.text import Tokenizer

# Buffers that old checkpoints carry: masks and rotary frequencies, recomputed by every reader.
_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|\.attn\.bias|\.attn\.masked_bias)$")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


class Weights(Protocol):
    """Tensors by Hugging Face name, whatever they are stored in."""

    def names(self) -> list[str]: ...
    def read(self, name: str) -> np.ndarray: ...


class Imported(NamedTuple):
    """A model taken in.

    Attributes:
      family: the preset dataclass.
      params: nested dict of float32 arrays.
      tokenizer: or None where the directory holds none.
      report: the parity check, or None if it was not asked for.
    """

    family: Any
    params: dict[str, Any]
    tokenizer: Tokenizer | None
    report: parity.ParityReport | None


def import_hf(path: str | os.PathLike[str]) -> tuple[Any, dict[str, Any], Tokenizer | None]:
    """``import_model`` with its check, without the report: (family, params, tokenizer)."""
    return import_model(path)[:3]


def import_model(
    path: str | os.PathLike[str],
    *,
    check: bool = True,
    place: Callable[[str, np.ndarray], Any] = lambda name, array: array,
) -> Imported:
    """Reads a model and proves that ours computes the same logits.

    Args:
      path: a Hugging Face directory with safetensors, or a ``.gguf`` file.
      check: run the parity gate; off only where the caller runs it itself.
      place: called with each finished parameter (dotted path, array), e.g. to put it on devices.

    Raises:
      CheckpointError: missing, damaged or malicious files; tensors unknown or of a wrong shape.
      ConfigError: a config.json field that the family does not know.
      ParityError: the logits differ.
    """
    path = pathlib.Path(path).expanduser()
    if path.suffix == ".gguf":
        from t5x_llm.hf.gguf_io import GgufReader

        gguf = GgufReader(path)
        config = gguf.config
        weights: Weights = gguf
        with tempfile.TemporaryDirectory() as scratch:
            gguf.write_tokenizer(pathlib.Path(scratch))
            tokenizer = _tokenizer(pathlib.Path(scratch))
    else:
        config, weights = read_config(path), SafetensorsReader(path)
        tokenizer = _tokenizer(path)
    family = family_of(config)
    check_tokenizer(tokenizer, family.vocab_size)
    read = resolve(weights, family.weight_map(), family)
    abstract = Model(family.decoder()).abstract_params()
    params = from_hf(family.weight_map(), abstract, read, place)
    report = None
    if check:
        report = parity.check_parity(
            parity.our_logits(family, params),
            reference(path, config, read),
            vocab_size=family.vocab_size,
            max_length=family.decoder().learned_positions,
        )
        report.raise_if_failed(f"Import of {path}")
    return Imported(family, params, tokenizer, report)


def _tokenizer(directory: pathlib.Path) -> Tokenizer | None:
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        return None
    from t5x_llm.text import load_tokenizer

    return load_tokenizer(directory)


def read_config(directory: pathlib.Path) -> dict[str, Any]:
    """config.json of a directory."""
    path = directory / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{directory}: no config.json; not a Hugging Face model directory.")
    return parse_json(path, path.read_bytes())


def family_of(config: dict[str, Any]) -> Any:
    """The family dataclass of a config.json.

    Raises:
      ConfigError: naming the model type or the field that is not known.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise ConfigError("config.json model_type", model_type, choices=FAMILIES)
    try:
        return FAMILIES[model_type].from_hf_config(config)
    except KeyError as e:
        raise ConfigError(f"config.json {e.args[0]}", None, "a value; the field is missing") from e
    except TypeError as e:
        raise ConfigError("config.json", model_type, f"fields of the right types ({e})") from e


def check_tokenizer(tokenizer: Tokenizer | None, vocab_size: int) -> None:
    """Raises ConfigError if the tokenizer has more tokens than the model."""
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise ConfigError(
            "vocab_size",
            vocab_size,
            f"at least the tokenizer's {tokenizer.vocab_size}",
            "Model and tokenizer do not belong together, or the vocabulary was not resized.",
        )


def resolve(weights: Weights, entries: list[Entry], family: Any) -> Callable[[str], np.ndarray]:
    """A reader by the family's names, after every stored tensor has been accounted for.

    Files saved from the bare model lack the first component of each name (``transformer.``); tied
    heads may be stored twice, and must then be equal.

    Raises:
      CheckpointError: naming tensors that are missing, or that the family does not know.
    """
    wanted = list(hf_sizes(entries, Model(family.decoder()).abstract_params()))
    stored = weights.names()
    held = set(stored)
    alias = {}
    for name in wanted:
        bare = name.partition(".")[2]
        alias[name] = name if name in held or bare not in held else bare
    missing = [name for name in wanted if alias[name] not in held]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(wanted)} tensors are missing, e.g. {', '.join(missing[:3])}."
        )
    known = set(alias.values())
    extra = [name for name in stored if name not in known and not _BUFFERS.search(name)]
    if "lm_head.weight" in extra and family.decoder().tied:
        table = next(e.hf for e in entries if e.ours == "embed.table")
        if not np.array_equal(weights.read("lm_head.weight"), weights.read(alias[table])):
            raise CheckpointError(
                f"lm_head.weight differs from {table}, yet the config says that they are tied."
            )
        extra.remove("lm_head.weight")
    if extra:
        raise CheckpointError(
            f"{len(extra)} tensors have no place in a {family.hf_type} model of this config, "
            f"e.g. {', '.join(extra[:3])}."
        )
    return lambda name: weights.read(alias[name])
