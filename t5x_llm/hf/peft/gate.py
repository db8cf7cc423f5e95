"""The gate of adapters: our logits against those of base and file, put together independently."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from t5x_llm.core.errors import ConfigError
from t5x_llm.hf import parity
from t5x_llm.hf.peft.config import PROMPTS
from t5x_llm.hf.peft.numpy_reader import AdaptedTensors
from t5x_llm.hf.peft.read import PROMPT, PeftAdapter
from t5x_llm.hf.reference import Logits, numpy_reference
from t5x_llm.models.family import Family

THRESHOLD = 1e-5


class BaseModel(NamedTuple):
    """A base model as Hugging Face tensors.

    Attributes:
      name: where it is to be loaded from, for adapter_config.json; or None.
      family: its preset.
      read: a tensor by Hugging Face name.
    """

    name: str | None
    family: Family
    read: Callable[[str], np.ndarray]


def adapted_reference(found: PeftAdapter, base: BaseModel) -> tuple[str, Logits]:
    """Returns (name, tokens [T] -> logits [T, V]) of base and PEFT file.

    The NumPy forward pass of the family where there is one; else ours over base tensors that
    ``AdaptedTensors`` has changed. Virtual tokens of a prompt become rows of the table of
    embeddings that the prompt's first tokens look up.

    Raises:
      ConfigError: a prefix, which is no change of tensors.
    """
    if found.config.kind == "PREFIX_TUNING":
        raise ConfigError("peft_type", found.config.kind, "a method that changes tensors")
    family = base.family
    config = family.to_hf_config()
    model = numpy_reference(str(config["model_type"]))
    if found.config.kind in PROMPTS:
        return _prompted(found, base, config, model)
    changed = AdaptedTensors(found, base.read)

    def read(name: str) -> np.ndarray:
        # In float32 the rounding of a model of thirty layers is more than the bound.
        return np.asarray(changed.read(name), np.float64)

    if model is None:
        return "our forward pass on tensors merged in NumPy", parity.streamed_logits(family, read)
    return f"numpy {np.__version__} on merged tensors", functools.partial(model, config, read)


def _prompted(
    found: PeftAdapter,
    base: BaseModel,
    config: Mapping[str, Any],
    model: Callable[[dict[str, Any], Callable[[str], np.ndarray], np.ndarray], Any] | None,
) -> tuple[str, Logits]:
    rows = found.tensors[PROMPT]
    entry = next(e for e in base.family.weight_map() if e.ours == "embed.table")
    vocabulary = base.family.vocab_size

    def read(name: str) -> np.ndarray:
        array = np.asarray(base.read(name), np.float64)
        return np.concatenate([array, rows.astype(np.float64)]) if name == entry.hf else array

    virtual = np.arange(vocabulary, vocabulary + len(rows))
    forward: Logits
    if model is not None:
        forward, name = functools.partial(model, dict(config), read), f"numpy {np.__version__}"
    else:
        family = _grown(base.family, len(rows))
        shown = {"lm_head.weight"}

        def whole(name: str) -> np.ndarray:
            array = read(name)
            if name in shown and len(array) == vocabulary:
                return np.concatenate([array, np.zeros((len(rows), *array.shape[1:]))])
            return array

        forward, name = parity.streamed_logits(family, whole), "our forward pass"

    def logits(tokens: np.ndarray) -> np.ndarray:
        out = forward(np.concatenate([virtual, tokens]).astype(np.int32))
        return np.asarray(out)[len(rows) :, :vocabulary]

    return f"{name} with virtual tokens in the table", logits


def _grown(family: Family, more: int) -> Family:
    from t5x_llm.models.family import changed

    made: Family = changed(family, vocab_size=family.vocab_size + more)
    return made


def check_adapter(found: PeftAdapter, base: BaseModel, ours: Logits) -> parity.ParityReport:
    """Compares our logits with those of base and PEFT file; raises nothing.

    Args:
      found: as read back from disk.
      base: what it adapts.
      ours: tokens [T] to logits [T, V] of the adapted model as it was trained.
    """
    longest = parity.max_length(base.family)
    if longest is not None:
        longest -= found.config.tokens
    return parity.check_parity(
        ours,
        adapted_reference(found, base),
        vocab_size=base.family.vocab_size,
        max_length=longest,
        threshold=THRESHOLD,
    )
