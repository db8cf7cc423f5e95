"""Reading a transformers config.json: every field is understood, harmless, off, or named.

Four rules. A field that is null says what an absent one says, unless transformers tells the two
apart. A field that changes no forward pass of a text model is harmless, whatever wrote it. A switch
that is off is off. What remains is unknown: ``UnknownField`` names it, and whoever can prove the
model by other means may go on without it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from t5x_llm.core.errors import ConfigError

# What transformers has written into every config.json, in one version or another.
_COMMON = frozenset(
    {"architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype"}
    | {"eos_token_id", "id2label", "is_decoder", "is_encoder_decoder", "label2id", "name_or_path"}
    | {"output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "return_dict"}
    | {"task_specific_params", "tokenizer_class", "torch_dtype", "transformers_version"}
    | {"use_cache", "finetuning_task", "num_labels", "output_past", "use_bfloat16", "torchscript"}
    | {"tf_legacy_loss", "xla_device", "keys_to_ignore_at_inference", "gradient_checkpointing"}
    | {"sep_token_id", "cls_token_id", "mask_token_id", "unk_token_id", "decoder_start_token_id"}
    | {"summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"}
    | {"n_special", "predict_special_tokens", "custom_pipelines", "license", "base_model"}
    | {"attn_implementation", "is_llama_config", "cache_implementation", "cache_config"}
)
# How texts are generated: generation_config.json's, which older versions kept here.
_GENERATION = frozenset(
    {"bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping"}
    | {"encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "force_bos_token_to_be"}
    | {"force_bos_token_to_be_generated", "forced_bos_token_id", "forced_eos_token_id"}
    | {"length_penalty", "max_length", "max_new_tokens", "min_length", "min_p", "no_repeat_ngram"}
    | {"no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences"}
    | {"output_scores", "prefix", "remove_invalid_values", "repetition_penalty", "epsilon_cutoff"}
    | {"return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p", "eta_cutoff"}
    | {"typical_p", "generation_config", "chat_template", "user_token_id", "assistant_token_id"}
)
# How models are trained, split and run; sums of which router losses are made; recorded lengths.
_TRAINING = frozenset(
    {"initializer_range", "initializer_factor", "init_std", "init_method", "init_device"}
    | {"output_router_logits", "router_aux_loss_coef", "router_z_loss_coef", "router_jitter_noise"}
    | {"aux_loss_alpha", "seq_aux", "pretraining_tp", "num_logits_to_keep", "use_flash_attn"}
    | {"use_flash_attention", "use_flash_attention_2", "flash_attn", "fused_mlp", "fused_bias_fc"}
    | {"use_fused_rms_norm", "use_fused_swiglu", "use_fused_rope", "use_sdpa", "attn_impl"}
    | {"attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "residual_in_fp32"}
    | {"layerdrop", "label_smoothing", "loss_type", "z_loss_weight", "ep_size", "use_liger_kernel"}
    | {"num_nextn_predict_layers", "num_mtp_layers", "vocab_file", "tokenizer_name", "data_path"}
    | {"model_max_length", "max_sequence_length", "max_seq_length", "max_seq_len", "seq_length"}
    | {"n_ctx", "n_positions", "context_length", "max_batch_size", "pad_vocab_size_multiple"}
    | {"vocab_size_multiple", "pad_vocab_size_multiple_of", "torch_compile", "world_size"}
)
HARMLESS = _COMMON | _GENERATION | _TRAINING
# Rates of dropout; tools' own notes; what begins with an underscore for transformers' own use.
_INERT = re.compile(
    r"(^|_)(dropout|drop)(_rate|_prob|_p|$)|(dropout|pdrop)(_prob|_p|_rate)?$|^classifier_dropout"
    r"|^(unsloth|tokenizer_|transformers|axolotl|llamafactory|mergekit|peft|neuron|openvino|onnx)"
    r"|^_(name_or_path|num_labels|commit_hash|from_model_config|attn_implementation\w*"
    r"|flash_attn_2_enabled|experts_implementation|output_attentions|pre_quantization_dtype)$"
    r"|\.js_config$"
)
# Switches of other architectures, with the values that leave them off.
_OFF: dict[str, tuple[Any, ...]] = {
    "pruned_heads": ({},),
    "quantization_config": ({},),
    "quantization": ({},),
    "compression_config": ({},),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (),
    "tie_encoder_decoder": (False,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "rotary_scaling_factor": (1,),
    "is_causal": (True,),
    "causal": (True,),
    "use_rope": (True,),
    "scale_attn_weights": (True,),
}
_WHY: dict[str, str] = {
    "pruned_heads": "Some heads were cut out of this model; save it without pruning.",
    "quantization_config": (
        "The weights are quantised, and are not read so: load the model in transformers, call "
        "dequantize(), save it in bfloat16, and import that; or find the unquantised original."
    ),
    "use_mrope": "Positions in three dimensions belong to models of images; this one reads text.",
    "add_cross_attention": "Layers that read an encoder are known in T5 alone.",
}
_WHY["compression_config"] = _WHY["quantization"] = _WHY["quantization_config"]
WRAPPED = ("text_config", "language_config", "llm_config", "thinker_config")


class UnknownField(ConfigError):
    """A field of config.json that may change what the model computes, for all that is known.

    Args:
      path: its name in the file, with a dot where it is nested.
      value: what the file says.
      paths: names of all such fields in the file, if they are known.
    """

    def __init__(self, path: str, value: Any, paths: tuple[str, ...] = ()):
        flags = " ".join(f"--ignore_field {name}" for name in paths or (path,))
        remedy = (
            "It may change what the model computes, and nothing here can prove that it does not. "
            "Where torch and transformers are installed, t5x-llm import compares the model with "
            f"theirs. If you know that it has no effect: t5x-llm import {flags}."
        )
        super().__init__(f"config.json {path}", value, "no field that is unknown here", remedy)
        self.path, self._all = path, (path, value, paths)

    def __reduce__(self) -> Any:
        """Pickles the error with all its arguments."""
        return type(self), self._all


def given(config: Mapping[str, Any], name: str, default: Any) -> Any:
    """Returns a field's value; ``default`` where it is absent or null."""
    value = config.get(name)
    return default if value is None else value


def without(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Returns a copy of a config without the field at ``path``, which may be nested."""
    name, _, rest = path.partition(".")
    inner = config.get(name)
    if rest and isinstance(inner, Mapping):
        return {**config, name: without(inner, rest)}
    return {k: v for k, v in config.items() if k != path}


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
      fixed: fields with the one value the family computes with; absent and null are fine.
      prefix: put before field names in messages; the name of the field it is nested in.

    Raises:
      UnknownField: naming the first field that is not known, harmless or off.
      ConfigError: a field has another value than the fixed one, or switches on what is not known.
    """
    for name, value in config.items():
        if value is None or _INERT.search(name):
            continue
        if name in fixed:
            if value != fixed[name] and (value or fixed[name]):  # off is off, however it is said
                raise ConfigError(
                    f"config.json {prefix}{name}",
                    value,
                    repr(fixed[name]),
                    "This family computes only that; another family or version may know more.",
                )
        elif name in known or name in HARMLESS:
            continue
        elif name in _OFF:
            if value not in _OFF[name]:
                off = " or ".join(repr(x) for x in _OFF[name] if x != {}) or "null"
                shown = _summary(value)
                raise ConfigError(f"config.json {prefix}{name}", shown, off, _WHY.get(name, ""))
        elif value:  # any other switch that is off is off
            raise UnknownField(prefix + name, value)


def _summary(value: Any) -> Any:
    """Returns what a message shows of a value: a table's telling entry, or the value."""
    if isinstance(value, Mapping) and "quant_method" in value:
        return {"quant_method": value["quant_method"]}
    return value


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
