"""InternLM 1 and 2 (arXiv 2403.17297), as their released repositories have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_llm.core.errors import check_choice
from t5x_llm.models.families.llama import LlamaLike
from t5x_llm.models.family import changed, grouped_qkv
from t5x_llm.models.hf_config import check_hf_config, given
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig

# Names of InternLM 2 for those of LLaMA.
_NAMES = {
    "model.embed_tokens": "model.tok_embeddings",
    "lm_head": "output",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


@dataclasses.dataclass(frozen=True)
class InternLM(LlamaLike):
    """LLaMA with biases in attention.

    Attributes:
      attention_bias: biases on the four attention projections.
    """

    norm_eps: float = 1e-6
    attention_bias: bool = True

    hf_type = "internlm"
    architecture = "InternLMForCausalLM"
    FIELDS = {**LlamaLike.FIELDS, "attention_bias": ("bias", True)}
    WRITTEN = {"hidden_act": "silu"}
    READ = LlamaLike.READ | {"rotary"}

    def attention(self) -> AttentionConfig:
        """Returns the attention with its biases."""
        bias = self.attention_bias
        return changed(super().attention(), qkv_bias=bias, out_bias=bias)

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The rotary settings; those of the first release are in a table ``rotary``."""
        rotary = given(config, "rotary", {})
        check_hf_config(
            rotary,
            known={"base", "type", "scaling_factor"},
            fixed={},
            prefix="rotary.",
        )
        kind = given(rotary, "type", "origin")
        check_choice("config.json rotary.type", kind, ("dynamic", "origin"))
        if "base" in rotary:
            config = {**config, "rope_theta": rotary["base"]}
        if kind == "dynamic":
            factor = given(rotary, "scaling_factor", 1.0)
            config = {**config, "rope_scaling": {"type": "dynamic", "factor": factor}}
        return super().read_hf(config)


@dataclasses.dataclass(frozen=True)
class InternLM2(InternLM):
    """InternLM with grouped queries, all in one tensor, and names of its own."""

    attention_bias: bool = False

    hf_type = "internlm2"
    architecture = "InternLM2ForCausalLM"
    FIELDS = {**InternLM.FIELDS, "attention_bias": ("bias", False)}
    READ = LlamaLike.READ

    def weight_map(self) -> list[Entry]:
        """LLaMA's under other names."""
        entries = super().weight_map()
        for theirs, own in _NAMES.items():
            entries = [changed(e, hf=e.hf.replace(f"{theirs}.", f"{own}.")) for e in entries]
        return entries

    def attention_entries(self, hf: str, ours: str) -> list[Entry]:
        """Returns for each key/value head its queries, its key and its value."""
        fused, heads = hf.replace("self_attn.", "attention.wqkv"), (self.n_heads, self.kv_heads)
        entries = [e for e in super().attention_entries(hf, ours) if "o_proj" in e.hf]
        return entries + grouped_qkv(fused, ours.removesuffix("."), heads)
