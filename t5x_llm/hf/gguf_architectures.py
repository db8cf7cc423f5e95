"""Architectures of GGUF files that are read: their tensors' names, and what the metadata says.

Names and layouts are those of llama.cpp's convert_hf_to_gguf.py and of gguf-py's constants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

_LAYER = "model.layers.{}."
_MLP, _ATTENTION = _LAYER + "mlp.", _LAYER + "self_attn."
_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": _LAYER + "input_layernorm",
    "blk.{}.ffn_norm": _LAYER + "post_attention_layernorm",
    "blk.{}.attn_q": _ATTENTION + "q_proj",
    "blk.{}.attn_k": _ATTENTION + "k_proj",
    "blk.{}.attn_v": _ATTENTION + "v_proj",
    "blk.{}.attn_output": _ATTENTION + "o_proj",
    "blk.{}.ffn_gate": _MLP + "gate_proj",
    "blk.{}.ffn_up": _MLP + "up_proj",
    "blk.{}.ffn_down": _MLP + "down_proj",
}
_NORMED = {
    "blk.{}.attn_q_norm": _ATTENTION + "q_norm",
    "blk.{}.attn_k_norm": _ATTENTION + "k_norm",
}
# "{e}" is the number of an expert: one tensor of the file is one of every expert.
_EXPERTS = {
    "blk.{}.ffn_gate_inp": _MLP + "gate",
    "blk.{}.ffn_gate_exps": _MLP + "experts.{e}.gate_proj",
    "blk.{}.ffn_up_exps": _MLP + "experts.{e}.up_proj",
    "blk.{}.ffn_down_exps": _MLP + "experts.{e}.down_proj",
}
_SHARED = {
    "blk.{}.ffn_gate_inp_shexp": _MLP + "shared_expert_gate",
    "blk.{}.ffn_gate_shexp": _MLP + "shared_expert.gate_proj",
    "blk.{}.ffn_up_shexp": _MLP + "shared_expert.up_proj",
    "blk.{}.ffn_down_shexp": _MLP + "shared_expert.down_proj",
}
_MIXTRAL = {
    "blk.{}.ffn_gate_inp": _LAYER + "block_sparse_moe.gate",
    **{
        f"blk.{{}}.ffn_{ours}{form}": _LAYER + f"block_sparse_moe.experts.{{e}}.{theirs}"
        for ours, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
        # Files of before 2024-04 have a tensor an expert.
        for form in ("_exps", ".{e}")
    },
}
_SOFT = {"attn_logit_softcapping", "final_logit_softcapping"}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_GELU = {"hidden_activation": "gelu_pytorch_tanh"}
_NO_BIAS = {"attention_bias": False, "mlp_bias": False}
_COUNTS = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
_COUNTS |= {"expert_feed_forward_length": "moe_intermediate_size"}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Translation of one ``general.architecture`` of GGUF to a Hugging Face model.

    Attributes:
      hf_type: model_type of config.json.
      hf_class: its class in transformers.
      names: ggml's names to Hugging Face's, without ``.weight``; {} for the layer.
      permuted: query and key rows are reordered.
      norm_offset: what is added to norm scales.
      fields: further keys of the metadata to fields of config.json.
      optional: the same, of keys that may be absent.
      fixed: fields of config.json that GGUF does not say.
      partial: whether fewer channels than a head has may be rotated.
      as_transformers: None where transformers (5.23) does not read such files, or not all that they
        say: then what is written from them is checked, and the source is not. Else fields of
        config.json to the one value that it takes for them, whatever the file says; None stands for
        the width over the heads.
    """

    hf_type: str
    hf_class: str
    names: Mapping[str, str] = dataclasses.field(default_factory=lambda: _LLAMA)
    permuted: bool = False
    norm_offset: float = 0.0
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    optional: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    partial: bool = False
    as_transformers: Mapping[str, Any] | None = None


ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", permuted=True, as_transformers=_NO_BIAS),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", as_transformers={"head_dim": None}),
    "qwen3": Architecture(
        "qwen3", "Qwen3ForCausalLM", {**_LLAMA, **_NORMED}, as_transformers={"head_dim": 128}
    ),
    "qwen2moe": Architecture(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {**_LLAMA, **_EXPERTS, **_SHARED},
        fields=_COUNTS | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        fixed={"norm_topk_prob": False},
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {**_LLAMA, **_NORMED, **_EXPERTS},
        fields=_COUNTS,
        fixed={"norm_topk_prob": True},
    ),
    "phi3": Architecture(
        "phi3",
        "Phi3ForCausalLM",
        {
            **_LLAMA,
            "blk.{}.attn_qkv": _ATTENTION + "qkv_proj",
            "blk.{}.ffn_up": _MLP + "gate_up_proj",
        },
        optional=_WINDOW,
        partial=True,
    ),
    "gemma": Architecture("gemma", "GemmaForCausalLM", norm_offset=1.0, fixed=_GELU),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        {
            **_LLAMA,
            "blk.{}.post_attention_norm": _LAYER + "post_attention_layernorm",
            "blk.{}.ffn_norm": _LAYER + "pre_feedforward_layernorm",
            "blk.{}.post_ffw_norm": _LAYER + "post_feedforward_layernorm",
        },
        norm_offset=1.0,
        fields={key: key for key in _SOFT} | _WINDOW,
        fixed=_GELU,
        as_transformers={"query_pre_attn_scalar": 256},
    ),
}
# What llama.cpp calls "llama" too: Mistral, which has a window, and Mixtral, which has experts.
MISTRAL = Architecture("mistral", "MistralForCausalLM", permuted=True, fields=_WINDOW)
MIXTRAL = Architecture(
    "mixtral",
    "MixtralForCausalLM",
    {**_LLAMA, **_MIXTRAL},
    permuted=True,
    fields={"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
    optional=_WINDOW,
)


def architecture(name: str, meta: Mapping[str, Any]) -> Architecture | None:
    """Returns the architecture of a file; None where it is not read.

    Args:
      name: its ``general.architecture``.
      meta: its keys, without that name before them.
    """
    if name == "llama" and meta.get("expert_count"):
        return MIXTRAL
    if name == "llama" and meta.get("attention.sliding_window"):
        return MISTRAL
    return ARCHITECTURES.get(name)
