"""Gemma 1 and 2 (arXiv 2403.08295, 2408.00118)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.families.llama import BiasedLlama
from t5x_llm.models.family import changed, norm
from t5x_llm.models.layer_types import FULL, SLIDING, check_layer_types, grouped
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.block import BlockConfig, GroupConfig, residual
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.norm import NormConfig


@dataclasses.dataclass(frozen=True)
class Gemma(BiasedLlama):
    """GeGLU, embeddings times sqrt(D), norm scales stored less one, heads of 256, tied."""

    n_kv_heads: int | None = 16
    head_dim: int | None = 256
    norm_eps: float = 1e-6
    tied: bool = True
    max_length: int = 8192

    hf_type = "gemma"
    architecture = "GemmaForCausalLM"
    FIELDS = {
        **BiasedLlama.FIELDS,
        "n_kv_heads": ("num_key_value_heads", 16),
        "head_dim": ("head_dim", 256),
        "tied": ("tie_word_embeddings", True),
        "max_length": ("max_position_embeddings", 8192),
    }
    WRITTEN = {"hidden_act": "gelu_pytorch_tanh", "attention_dropout": 0.0}
    FIXED = {"use_bidirectional_attention": False, "hidden_activation": "gelu_pytorch_tanh"}

    def norm(self) -> NormConfig:
        """RMSNorm whose stored scale is that less one."""
        return NormConfig("rms", self.norm_eps, bias=False, scale="zeros")

    def feed_forward(self) -> MlpConfig:
        """GeGLU."""
        return MlpConfig(self.d_ff, "gelu_tanh", gated=True, bias=False)

    def decoder(self) -> DecoderConfig:
        """LLaMA's with scaled embeddings."""
        return changed(super().decoder(), embed_scale=math.sqrt(self.d_model))

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> Gemma:
        """Gemma 1 was first released with hidden_act 'gelu', which meant the tanh form."""
        old = cls is Gemma and config.get("hidden_act") == "gelu"
        return super().from_hf_config(
            {**config, "hidden_act": "gelu_pytorch_tanh"} if old else config
        )


@dataclasses.dataclass(frozen=True)
class Gemma2(Gemma):
    """Alternating windows, soft caps, norms before and after every layer.

    Attributes:
      query_scale: queries are divided by its root; query_pre_attn_scalar.
      window: of every other layer, the first included.
      layer_types: 'full_attention' or 'sliding_attention' for each layer; () alternates.
      attention_softcap: cap of attention logits, or None.
      logit_softcap: cap of the output logits, or None.
    """

    n_kv_heads: int | None = 4
    query_scale: float = 256
    window: int = 4096
    layer_types: tuple[str, ...] = ()
    attention_softcap: float | None = 50.0
    logit_softcap: float | None = 30.0

    hf_type = "gemma2"
    architecture = "Gemma2ForCausalLM"
    FIELDS = {
        **Gemma.FIELDS,
        "n_kv_heads": ("num_key_value_heads", 4),
        "query_scale": ("query_pre_attn_scalar", 256),
        "window": ("sliding_window", 4096),
    }
    WRITTEN = {"hidden_activation": "gelu_pytorch_tanh", "attention_dropout": 0.0}
    FIXED = {
        "use_bidirectional_attention": False,
        "hidden_act": "gelu_pytorch_tanh",
    }
    COPIES = {"sliding_window_size": "window"}
    READ = Gemma.READ | {"layer_types", "attn_logit_softcapping", "final_logit_softcapping"}

    def __post_init__(self) -> None:
        check_layer_types("Gemma2", self.layer_types, (FULL, SLIDING))
        if self.layer_types and len(self.layer_types) != self.n_layers:
            raise ConfigError("Gemma2.layer_types", self.layer_types, f"{self.n_layers} of them")
        super().__post_init__()

    @property
    def types(self) -> tuple[str, ...]:
        """The kind of every layer."""
        alternating = tuple(FULL if i % 2 else SLIDING for i in range(self.n_layers))
        return self.layer_types or alternating

    def attention(self) -> AttentionConfig:
        """Returns the attention with a scale of its own and capped logits."""
        return changed(
            super().attention(), scale=self.query_scale**-0.5, softcap=self.attention_softcap
        )

    def groups(self) -> tuple[GroupConfig, ...]:
        """Layers by their type."""
        joined = residual(self.norm(), out=self.norm())

        def block(kind: str) -> BlockConfig:
            window = self.window if kind == SLIDING else None
            attention = changed(self.attention(), window=window)
            return BlockConfig(attention, self.feed_forward(), joined, "no")

        return grouped(self.types, block)

    def decoder(self) -> DecoderConfig:
        """Returns the decoder with capped logits."""
        return changed(super().decoder(), logit_softcap=self.logit_softcap)

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Caps may be null, which is not the same as absent."""
        return super().read_hf(config) | {
            "layer_types": tuple(config.get("layer_types") or ()),
            "attention_softcap": config.get("attn_logit_softcapping", 50.0),
            "logit_softcap": config.get("final_logit_softcapping", 30.0),
        }

    def write_hf(self) -> dict[str, Any]:
        """Returns the fields that ``read_hf`` reads."""
        return super().write_hf() | {
            "layer_types": list(self.types),
            "attn_logit_softcapping": self.attention_softcap,
            "final_logit_softcapping": self.logit_softcap,
        }

    def norm_entries(self, hf: str, ours: str) -> list[Entry]:
        """Four norms a layer."""
        names = {
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "attention_out_norm",
            "pre_feedforward_layernorm": "mlp_norm",
            "post_feedforward_layernorm": "mlp_out_norm",
        }
        return [e for theirs, own in names.items() for e in norm(hf + theirs, ours + own, False)]
