"""Reading a transformers config.json: every field is understood, harmless, or refused by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from t5x_llm.core.errors import ConfigError

# Fields that say nothing about the arithmetic of a forward pass of a causal decoder.
HARMLESS = frozenset(
    {"architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype"}
    | {"eos_token_id", "id2label", "is_decoder", "is_encoder_decoder", "label2id", "name_or_path"}
    | {"output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "return_dict"}
    | {"task_specific_params", "tokenizer_class", "torch_dtype", "transformers_version"}
    | {"transformers.js_config", "use_cache", "_name_or_path"}
    | {"summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"}
    | {"summary_first_dropout", "gradient_checkpointing"}
)


def check_hf_config(
    config: Mapping[str, Any],
    *,
    known: Collection[str],
    fixed: Mapping[str, Any],
    prefix: str = "",
) -> None:
    """Refuses a config this family would compute wrongly.

    Args:
      config: the parsed JSON.
      known: fields the family maps.
      fixed: fields with the one value the family computes with; absent is fine.
      prefix: put before field names in messages.

    Raises:
      ConfigError: naming the first field that is neither known nor harmless, or that has
        another value than the fixed one.
    """
    for name, value in config.items():
        if name in fixed:
            if value != fixed[name]:
                raise ConfigError(
                    f"config.json {prefix}{name}",
                    value,
                    repr(fixed[name]),
                    "This family computes only that; another family or version may know more.",
                )
        elif name not in known and (prefix or name not in HARMLESS):
            raise ConfigError(
                f"config.json {prefix}{name}",
                value,
                "a field this family knows",
                "Importing it would compute something else than the original, so it is refused.",
            )


def check_copies(config: Mapping[str, Any], copies: Mapping[str, Any], prefix: str = "") -> None:
    """Refuses a field that only repeats what others say, and says something else.

    Args:
      config: the parsed JSON.
      copies: such fields, to the value that the others give; absent or null is fine.
      prefix: put before field names in messages.

    Raises:
      ConfigError: naming the field.
    """
    for name, value in copies.items():
        if config.get(name) not in (None, value):
            raise ConfigError(
                f"config.json {prefix}{name}",
                config[name],
                f"{value!r}, which other fields give",
                "The file contradicts itself; correct the one or the other.",
            )
