"""Virtual tokens of our models as plain arrays and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf.peft.adapter import Prompted
from t5x_llm.hf.peft.layout import cached_heads
from t5x_llm.models.family import Family
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import flatten, unflatten
from t5x_llm.nn.adapters import roots
from t5x_llm.nn.adapters.config import Adapter
from t5x_llm.nn.adapters.prompting import Prefix, Prompt
from t5x_llm.nn.attention import AttentionConfig

_PLACE = re.compile(r"(?:\w+\.)?group_(\d+)\.block_(\d+)\..*adapter\.(\w+)$")


def prompt_of(kind: str, flat: Mapping[str, np.ndarray]) -> Prompted:
    """Makes plain arrays of the virtual tokens of a model.

    What a network makes of embeddings is computed here, so that the result needs no network.

    Args:
      kind: PEFT's name of the method.
      flat: parameters of the adapter by path, float32.
    """
    own = {p.rpartition(".")[2]: np.float64(v) for p, v in flat.items() if p.startswith("adapter.")}
    if kind != "PREFIX_TUNING":
        rows = own["embedding"]
        for i in range(3):
            if f"kernel_{i}" in own:
                rows = np.maximum(rows, 0) if i else rows
                rows = rows @ own[f"kernel_{i}"] + own[f"bias_{i}"]
        return Prompted(kind, embeddings=rows.astype(np.float32))
    found: dict[str, list[np.ndarray]] = {"key": [], "value": []}
    trunk = None
    if "embedding" in own:
        trunk = np.tanh(own["embedding"] @ own["kernel"] + own["bias"])
    for name, layers in found.items():
        for path, index in _layers(flat, name):
            array = np.float64(flat[path][index])
            if trunk is not None:
                bias = flat[f"{path}_bias"][index]
                array = np.einsum("nh,h...->n...", trunk, array) + bias
            layers.append(array.astype(np.float32))
    return Prompted(kind, keys=np.stack(found["key"]), values=np.stack(found["value"]))


def _layers(paths: Mapping[str, Any], name: str) -> list[tuple[str, int]]:
    """Returns (path, index of the repeat) of every layer's parameter ``name``, in order."""
    order = []
    for path, leaf in paths.items():
        match = _PLACE.match(path)
        if match is not None and match[3] == name:
            group, block = int(match[1]), int(match[2])
            order += [((group, repeat, block), path, repeat) for repeat in range(leaf.shape[0])]
    return [(path, repeat) for _, path, repeat in sorted(order)]


def _own_heads(layers: np.ndarray, family: Family) -> np.ndarray:
    """Keys or values [L, n, K, H] of [L, n, N, H] where transformers' cache repeats them."""
    heads = cached_heads(family)
    attention = family.decoder().groups[0].blocks[0].mixer
    if heads is None or layers.shape[2] != heads or not isinstance(attention, AttentionConfig):
        return layers
    group = heads // attention.n_kv_heads
    first = layers[:, :, ::group]
    if not np.array_equal(np.repeat(first, group, axis=2), layers):
        raise ConfigError(
            "peft_type",
            "PREFIX_TUNING",
            f"the same prefix for the {group} query heads that share a key",
            "peft trained one for each; there is no such prefix here.",
        )
    return first


def prompt_given(prompt: Prompted, family: Family) -> tuple[Adapter, dict[str, Any]]:
    """Makes the config and the parameters of virtual tokens that a model is given.

    Raises:
      CheckpointError: they are of a model of other sizes.
      ConfigError: the model has no place for them.
    """
    decoder = family.decoder()
    config: Adapter
    if prompt.embeddings is not None:
        config = Prompt(len(prompt.embeddings))
        config.check(decoder, 0)
        return config, {"adapter": {"embedding": prompt.embeddings}}
    assert prompt.keys is not None and prompt.values is not None
    if decoder.kind == "encoder_decoder":
        raise ConfigError(
            "peft_type",
            prompt.kind,
            "another method for an encoder-decoder",
            "peft gives both attentions of the decoder the same prefix, a model here its own alone",
        )
    config = Prefix(prompt.keys.shape[1])
    tree = roots.split(Model(decoder, adapter=config).abstract_params())
    abstract = flatten(tree[roots.ADAPTER])
    out: dict[str, np.ndarray] = {}
    for name, layers in (("key", prompt.keys), ("value", prompt.values)):
        layers = _own_heads(layers, family)
        places = _layers(abstract, name)
        shapes = {path: tuple(leaf.shape) for path, leaf in abstract.items()}
        fits = len(places) == len(layers) and all(
            shapes[path][1:] == layers.shape[1:] for path, _ in places
        )
        if not fits:
            raise CheckpointError(
                f"The adapter is of another base: its prefix has {len(layers)} layers of shape "
                f"{list(layers.shape[1:])}, this model {len(places)} of "
                f"{[list(shapes[path][1:]) for path, _ in places[:1]]}."
            )
        for (path, repeat), layer in zip(places, layers, strict=True):
            out.setdefault(path, np.zeros(shapes[path], np.float32))[repeat] = layer
    return config, unflatten(out)
