"""OLMo 1 and 2 (arXiv 2402.00838, 2501.00656)."""

from __future__ import annotations

import dataclasses

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.families.llama import BiasedLlama
from t5x_llm.models.family import changed, norm
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig, QKNormConfig
from t5x_llm.nn.block import BlockConfig, GroupConfig, residual
from t5x_llm.nn.norm import NormConfig


@dataclasses.dataclass(frozen=True)
class Olmo(BiasedLlama):
    """LLaMA with LayerNorms that learn nothing.

    Attributes:
      qkv_clip: queries, keys and values are clipped to +- this, or None.
    """

    qkv_clip: float | None = None

    hf_type = "olmo"
    architecture = "OlmoForCausalLM"
    FIELDS = {
        **{ours: hf for ours, hf in BiasedLlama.FIELDS.items() if ours != "norm_eps"},
        "qkv_clip": ("clip_qkv", None),
    }

    def __post_init__(self) -> None:
        if self.norm_eps != 1e-5:
            raise ConfigError("Olmo.norm_eps", self.norm_eps, "1e-5, as in every OLMo 1")
        super().__post_init__()

    def norm(self) -> NormConfig:
        """LayerNorm without scale and bias."""
        return NormConfig("layer", self.norm_eps, bias=False, scale="none")

    def attention(self) -> AttentionConfig:
        """LLaMA's, clipped."""
        return changed(super().attention(), qkv_clip=self.qkv_clip)

    def weight_map(self) -> list[Entry]:
        """LLaMA's without norms."""
        return [entry for entry in super().weight_map() if "norm" not in entry.hf]


@dataclasses.dataclass(frozen=True)
class Olmo2(BiasedLlama):
    """LLaMA with norms on layers' outputs instead of inputs, and on queries and keys."""

    hf_type = "olmo2"
    architecture = "Olmo2ForCausalLM"
    FIELDS = {**BiasedLlama.FIELDS, "norm_eps": ("rms_norm_eps", 1e-5)}

    def attention(self) -> AttentionConfig:
        """LLaMA's, with norms over all heads' queries and keys."""
        return changed(super().attention(), qk_norm=QKNormConfig(self.norm(), "all"))

    def groups(self) -> tuple[GroupConfig, ...]:
        """x + norm(f(x))."""
        joined = residual(None, out=self.norm())
        block = BlockConfig(self.attention(), self.feed_forward(), joined, parallel="no")
        return (GroupConfig((block,), self.n_layers),)

    def norm_entries(self, hf: str, ours: str) -> list[Entry]:
        """After attention and after the feed-forward layer."""
        return [
            *norm(f"{hf}post_attention_layernorm", f"{ours}attention_out_norm", False),
            *norm(f"{hf}post_feedforward_layernorm", f"{ours}mlp_out_norm", False),
        ]

    def attention_entries(self, hf: str, ours: str) -> list[Entry]:
        """Returns the entries, with norms of queries and keys, one scale a channel of all heads."""
        return [
            *super().attention_entries(hf, ours),
            *norm(f"{hf}q_norm", f"{ours}query_norm.norm", False),
            *norm(f"{hf}k_norm", f"{ours}key_norm.norm", False),
        ]
