"""StableLM 3B, 2 1.6B and 2 12B (arXiv 2402.17834)."""

from __future__ import annotations

import dataclasses

from t5x_llm.models.families.llama import PartialLlama
from t5x_llm.models.family import changed
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig, QKNormConfig
from t5x_llm.nn.block import BlockConfig, GroupConfig, pre_norm
from t5x_llm.nn.norm import NormConfig


@dataclasses.dataclass(frozen=True)
class StableLM(PartialLlama):
    """LLaMA with LayerNorms and a quarter of each head rotated.

    Attributes:
      qkv_bias: biases on queries, keys and values.
      qk_norm: LayerNorms without bias on queries and keys, with a scale for each head.
      parallel: x + attention(norm(x)) + mlp(norm(x)).
    """

    rotary_fraction: float = 0.25
    qkv_bias: bool = False
    qk_norm: bool = False
    parallel: bool = False
    max_length: int = 4096

    hf_type = "stablelm"
    architecture = "StableLmForCausalLM"
    FIELDS = {
        **PartialLlama.FIELDS,
        "n_kv_heads": ("num_key_value_heads", 32),
        "norm_eps": ("layer_norm_eps", 1e-5),
        "max_length": ("max_position_embeddings", 4096),
        "qkv_bias": ("use_qkv_bias", False),
        "qk_norm": ("qk_layernorm", False),
        "parallel": ("use_parallel_residual", False),
    }
    WRITTEN = {"hidden_act": "silu", "hidden_dropout": 0.0, "attention_dropout": 0.0}
    # Of the first release.
    COPIES = {"num_heads": "n_heads", "rope_pct": "rotary_fraction", "norm_eps": "norm_eps"}

    def norm(self) -> NormConfig:
        """LayerNorm."""
        return NormConfig("layer", self.norm_eps, bias=True, scale="ones")

    def attention(self) -> AttentionConfig:
        """Returns the attention with its biases and norms."""
        qk_norm = QKNormConfig(changed(self.norm(), bias=False), "heads") if self.qk_norm else None
        return changed(super().attention(), qkv_bias=self.qkv_bias, qk_norm=qk_norm)

    def groups(self) -> tuple[GroupConfig, ...]:
        """One after the other, or in parallel behind one norm."""
        parallel = "one_norm" if self.parallel else "no"
        block = BlockConfig(self.attention(), self.feed_forward(), pre_norm(self.norm()), parallel)
        return (GroupConfig((block,), self.n_layers),)

    def norm_entries(self, hf: str, ours: str) -> list[Entry]:
        """Returns the entries, without the second norm where layers are parallel."""
        entries = super().norm_entries(hf, ours)
        return [e for e in entries if not (self.parallel and "post_attention" in e.hf)]

    def attention_entries(self, hf: str, ours: str) -> list[Entry]:
        """LLaMA's, and a norm for each head."""
        entries = super().attention_entries(hf, ours)
        if self.qk_norm:
            for name, part, head in (("q", "query", "N"), ("k", "key", "K")):
                scale = f"{ours}{part}_norm.norm.scale"
                tensor = f"{hf}{name}_layernorm.norms.{{{head}}}.weight"
                entries.append(Entry(tensor, scale, "H", f"{head} H"))
        return entries
