"""Metadata of GGUF files as a config.json: every key is used, without effect, or refused."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf.gguf_architectures import Architecture
from t5x_llm.hf.gguf_rope import rope_parameters

# llama.cpp looks up keys of "general", "tokenizer", "split" and the architecture; what tools add
# under names of their own it never reads. These are of files that are no models.
_OTHER_FILES = re.compile(r"^(adapter|clip|controlvector|imatrix)\.")
# Keys of an architecture that say nothing about the arithmetic.
_HARMLESS = ("tensor_data_layout", "expert_group_count", "expert_group_used_count")
# Keys with the values that they have where they change nothing.
_OFF: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_feed_forward_length": (0,),
    "expert_shared_count": (0,),
    "expert_weights_scale": (1.0, 0.0),
    "attention.sliding_window": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "pooling_type": (0,),
    "logit_scale": (1.0, 0.0),
    "embedding_scale": (1.0,),
    "residual_scale": (1.0,),
    "use_parallel_residual": (False,),
    "nextn_predict_layers": (0,),
    "rope.dimension_sections": (),
}
# Texts of tokens that end a turn or a text, where the metadata names only one of them, as
# llama.cpp's src/llama-vocab.cpp recognises them.
_ENDS = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>"}
    | {"<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "<|end_of_text|>", "<end_of_utterance>"}
    | {"[EOT]", "[EOS]", "<eos>", "</s>"}
)
_CONTROL, _USER = 3, 4


def read_metadata(
    path: pathlib.Path,
    name: str,
    architecture: Architecture,
    fields: Mapping[str, Any],
    meta: dict[str, Any],
    factors: Mapping[str, np.ndarray],
    rows: int,
) -> dict[str, Any]:
    """Returns config.json without what tensors say: whether the head is tied, and biases.

    Args:
      path: for messages.
      name: ``general.architecture``.
      architecture: of it.
      fields: all metadata.
      meta: that of the architecture, without its name; emptied.
      factors: divisors of rotary frequencies; see ``gguf_rope``.
      rows: of the table of embeddings.

    Raises:
      ConfigError: a key is not known, or says what config.json cannot.
      CheckpointError: a key is missing, or of the wrong type.
    """
    _check_others(path, name, fields)
    _one_for_all(path, name, meta)
    get = meta.pop
    try:
        heads, width = get("attention.head_count"), get("embedding_length")
        head_dim = get("attention.key_length", None) or width // heads
        context = get("context_length")
        theta = _shortest(get("rope.freq_base", 10000.0))
        rotated = get("rope.dimension_count", None) or head_dim
        config = {
            "model_type": architecture.hf_type,
            "architectures": [architecture.hf_class],
            "vocab_size": get("vocab_size", None) or rows,
            "hidden_size": width,
            "intermediate_size": get("feed_forward_length"),
            "num_hidden_layers": get("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": get("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position_embeddings": context,
            "rms_norm_eps": _shortest(get("attention.layer_norm_rms_epsilon")),
            **architecture.fixed,
        }
        rope = rope_parameters(meta, factors, theta, rotated, context, path)
        config["rope_parameters"] = rope
        for key, field in architecture.fields.items():
            value = get(key)
            config[field] = _shortest(value) if isinstance(value, float) else value
        for key, field in architecture.optional.items():
            config[field] = get(key, None) or None
        if name == "gemma2":
            # As llama.cpp does: the 27B, of 46 layers, divides by its own number.
            wide = config["num_hidden_layers"] == 46
            config["query_pre_attn_scalar"] = width // heads if wide else head_dim
    except KeyError as e:
        raise CheckpointError(f"{path}: metadata lacks {name}.{e.args[0]}.") from e
    except (TypeError, ValueError, ArithmeticError) as e:
        raise CheckpointError(f"{path}: metadata of wrong types ({e}).") from e
    if architecture.hf_type == "phi3":
        _phi3(path, config, head_dim, rotated)
    elif rotated != head_dim:
        raise ConfigError(f"{path.name} {name}.rope.dimension_count", rotated, f"{head_dim}")
    if (value := get("attention.value_length", head_dim)) != head_dim:
        raise ConfigError(f"{path.name} {name}.attention.value_length", value, f"{head_dim}")
    for key, value in meta.items():
        if key in _HARMLESS or value in _OFF.get(key, ()):
            continue
        off = " or ".join(map(str, _OFF.get(key, ())))
        raise ConfigError(
            f"{path.name} {name}.{key}",
            value,
            off or "a key this reader knows",
            "Importing it would compute something else than the original, so it is refused.",
        )
    return config


def _check_others(path: pathlib.Path, name: str, fields: Mapping[str, Any]) -> None:
    for key, value in fields.items():
        if not key.startswith(f"{name}.") and _OTHER_FILES.match(key):
            raise ConfigError(
                f"{path.name} {key}", value, "no such key: the file is no model but a part of one"
            )


def _one_for_all(path: pathlib.Path, name: str, meta: dict[str, Any]) -> None:
    """Puts one number in the place of a list that gives every layer the same."""
    for key, value in meta.items():
        if not isinstance(value, (np.ndarray, list)):
            continue
        listed = value.tolist() if isinstance(value, np.ndarray) else value
        if not listed or any(x != listed[0] for x in listed):
            raise ConfigError(
                f"{path.name} {name}.{key}", f"{len(listed)} values", "one for all layers"
            )
        meta[key] = listed[0]


def _phi3(path: pathlib.Path, config: dict[str, Any], head_dim: int, rotated: int) -> None:
    """Adds what Phi-3's config.json says in its own way."""
    if head_dim * config["num_attention_heads"] != config["hidden_size"]:
        raise ConfigError(f"{path.name} phi3.attention.key_length", head_dim, "width over heads")
    del config["head_dim"]
    if rotated != head_dim:
        config["partial_rotary_factor"] = rotated / head_dim


def end_tokens(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of config.json that name special tokens.

    Raises:
      CheckpointError: an id is no token of the file's.
    """
    tokens = fields.get("tokenizer.ggml.tokens")
    tokens = tokens if isinstance(tokens, list) else []
    kinds = fields.get("tokenizer.ggml.token_type", ())
    found: dict[str, Any] = {}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        value = fields.get(f"tokenizer.ggml.{theirs}_token_id")
        if isinstance(value, int) and 0 <= value < len(tokens):
            found[f"{ours}_token_id"] = value
    ends = [found["eos_token_id"]] if "eos_token_id" in found else []
    for key in ("eot", "eom"):
        value = fields.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(value, int) and 0 <= value < len(tokens):
            ends.append(value)
    if len(kinds) == len(tokens):
        special = (i for i, kind in enumerate(kinds) if int(kind) in (_CONTROL, _USER))
        ends += [i for i in special if tokens[i] in _ENDS]
    if ends := list(dict.fromkeys(ends)):
        found["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return found


def _shortest(value: float) -> float:
    """The decimal that a float32 was written from: 9.999999747378752e-06 gives 1e-05."""
    return float(str(np.float32(value)))
