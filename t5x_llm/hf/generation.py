"""Settings of generation that lie beside a model: generation_config.json, and its end tokens.

Fields and their meaning are those of transformers' GenerationConfig
(https://huggingface.co/docs/transformers/main_classes/text_generation). Models older than that file
have the same fields in config.json, from where transformers takes them too.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from t5x_llm.core.errors import ConfigError
from t5x_llm.hf.shards import read_json

FILE = "generation_config.json"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
# Settings that say how a token is drawn; a model that has none of them leaves that to the caller.
SAMPLED = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
# What transformers takes where a setting of these is absent (5.23, and 4.x before it).
DEFAULTS: dict[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
}
# Settings that change what transformers generates and nothing here, with the values that do not.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), (1,)),
    **dict.fromkeys(("typical_p", "encoder_repetition_penalty"), (1.0,)),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "diversity_penalty"), (0.0,)),
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size"), (0,)),
    "encoder_no_repeat_ngram_size": (0,),
    **dict.fromkeys(("min_p", "top_h", "penalty_alpha"), (0.0,)),
    "guidance_scale": (1.0,),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"), ([],)),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "force_words_ids"), ()),
    **dict.fromkeys(("sequence_bias", "constraints", "watermarking_config"), ()),
    "exponential_decay_length_penalty": (),
}
# Those, and others that only transformers reads: all that may stand in config.json.
_LEGACY = frozenset(
    {*DEFAULTS, *UNSUPPORTED, "max_new_tokens", "max_length", "stop_strings", "early_stopping"}
    | {"length_penalty", "remove_invalid_values", "max_time", "renormalize_logits"}
)
_MAX_ENDS = 1000
# Fields of ``infer.sampling.Sampling`` that have another name in the file.
NAMES = {"max_tokens": "max_new_tokens", "stop": "stop_strings"}


def read_generation(directory: pathlib.Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a directory's generation_config.json.

    Without the file they are those that config.json has, as in transformers; ids of special tokens
    that the file leaves out are config.json's.

    Raises:
      CheckpointError: the file is no JSON object, too large, or a link that leads out.
    """
    if os.path.lexists(directory / FILE):
        found = read_json(directory, FILE)
        found.pop("_from_model_config", None)
    else:
        found = {k: v for k, v in config.items() if k in _LEGACY and v is not None}
    ids = {k: config[k] for k in IDS if found.get(k) is None and config.get(k) is not None}
    return found | ids


def end_ids(generation: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    """Returns the tokens that end a text: every one that ``eos_token_id`` names.

    Ids outside the vocabulary, such as LLaMA's -1 for "none", end nothing and are left out.

    Raises:
      ConfigError: it is neither an integer nor a list of them.
    """
    value = generation.get("eos_token_id")
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in listed):
        raise ConfigError(f"{FILE} eos_token_id", value, "an integer or a list of integers")
    found = tuple(dict.fromkeys(i for i in listed if 0 <= i < vocab_size))
    if len(found) > _MAX_ENDS:
        raise ConfigError(f"{FILE} eos_token_id", f"{len(found)} ids", f"at most {_MAX_ENDS}")
    return found


def within(ids: object, vocab_size: int) -> int | list[Any] | None:
    """Returns an id, or a list of them, without what is no token of the vocabulary; else None."""
    if isinstance(ids, list):
        kept = [i for i in ids if within(i, vocab_size) is not None]
        return kept or None
    if isinstance(ids, bool) or not isinstance(ids, int):
        return None
    return ids if 0 <= ids < vocab_size else None


def sampling_fields(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields of ``infer.sampling.Sampling`` as transformers' generate reads the settings.

    Where any of ``SAMPLED`` is set, the others take transformers' defaults: without ``do_sample``
    the likeliest token is taken, and ``top_k`` is 50 where it is sampled. Where none is set, none
    of their fields is returned. Values are as they stand in the file: whoever makes a Sampling of
    them checks them.
    """
    fields: dict[str, Any] = {}
    said = {k: v for k, v in generation.items() if v is not None}
    if any(name in said for name in SAMPLED):
        settings = {name: said.get(name, default) for name, default in DEFAULTS.items()}
        drawn = settings.pop("do_sample")
        fields = settings if drawn else {
            "temperature": 0.0, "repetition_penalty": settings["repetition_penalty"]
        }  # fmt: skip
    if "max_new_tokens" in said:
        fields["max_tokens"] = said["max_new_tokens"]
    if "stop_strings" in said:
        stop = said["stop_strings"]
        fields["stop"] = tuple(stop) if isinstance(stop, list) else (stop,)
    return fields


def unsupported(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that transformers' generate follows and ours does not."""
    return {
        name: generation[name]
        for name, neutral in UNSUPPORTED.items()
        if generation.get(name) is not None and generation[name] not in neutral
    }
