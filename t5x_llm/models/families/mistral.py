"""Mistral (arXiv 2310.06825): LLaMA with a sliding window."""

from __future__ import annotations

import dataclasses

from t5x_llm.models.families.llama import LlamaLike
from t5x_llm.models.family import changed
from t5x_llm.nn.attention import AttentionConfig


@dataclasses.dataclass(frozen=True)
class Mistral(LlamaLike):
    """LLaMA whose tokens may see the last ``window`` only.

    Attributes:
      window: tokens each sees, itself included; None for all.
    """

    n_kv_heads: int | None = 8
    window: int | None = None

    hf_type = "mistral"
    architecture = "MistralForCausalLM"
    FIELDS = {
        **LlamaLike.FIELDS,
        "n_kv_heads": ("num_key_value_heads", 8),
        "window": ("sliding_window", 4096),
        "max_length": ("max_position_embeddings", 131072),
    }

    def attention(self) -> AttentionConfig:
        """LLaMA's, with the window."""
        return changed(super().attention(), window=self.window)
