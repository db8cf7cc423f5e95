"""Qwen 2, 2.5 and 3 (arXiv 2407.10671, 2412.15115, 2505.09388)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.families.llama import LlamaLike
from t5x_llm.models.family import changed, norm
from t5x_llm.models.hf_config import given
from t5x_llm.models.layer_types import FULL, SLIDING, check_layer_types, grouped
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig, QKNormConfig
from t5x_llm.nn.block import BlockConfig, GroupConfig, pre_norm


@dataclasses.dataclass(frozen=True)
class Qwen2(LlamaLike):
    """LLaMA with biases on queries, keys and values, and a window in some layers.

    Attributes:
      window: of the layers that have one, or None.
      layer_types: 'full_attention' or 'sliding_attention' for each layer; () means all full.
    """

    window: int | None = None
    layer_types: tuple[str, ...] = ()

    hf_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    FIELDS = {
        **LlamaLike.FIELDS,
        "n_kv_heads": ("num_key_value_heads", 32),
        "max_length": ("max_position_embeddings", 32768),
    }
    READ = LlamaLike.READ | {"use_sliding_window", "sliding_window", "layer_types"}
    READ |= {"max_window_layers"}

    def __post_init__(self) -> None:
        family = type(self).__name__
        check_layer_types(family, self.layer_types, (FULL, SLIDING))
        if self.layer_types and len(self.layer_types) != self.n_layers:
            raise ConfigError(
                f"{family}.layer_types",
                self.layer_types,
                f"one for each of {family}.n_layers = {self.n_layers} layers",
            )
        if (self.window is not None) != (SLIDING in self.layer_types):
            raise ConfigError(
                f"{family}.window",
                self.window,
                "a number where layer_types has 'sliding_attention', else None",
            )
        super().__post_init__()

    def attention(self) -> AttentionConfig:
        """Returns the attention with biases on three of the four projections."""
        return changed(super().attention(), qkv_bias=True, out_bias=False)

    def groups(self) -> tuple[GroupConfig, ...]:
        """Layers by their type."""

        def block(kind: str) -> BlockConfig:
            window = self.window if kind == SLIDING else None
            attention = changed(self.attention(), window=window)
            return BlockConfig(attention, self.feed_forward(), pre_norm(self.norm()), "no")

        return grouped(self.layer_types or (FULL,) * self.n_layers, block)

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The window and the layers that have it, besides the rotary settings."""
        fields = super().read_hf(config)
        window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
        layers = config["num_hidden_layers"]
        types = config.get("layer_types")
        if types is None and window is not None:
            first = given(config, "max_window_layers", 28)
            types = [SLIDING if cls.has_window(i, first) else FULL for i in range(layers)]
        if types is None or SLIDING not in types or window is None:
            return fields
        return fields | {"window": window, "layer_types": tuple(types)}

    @staticmethod
    def has_window(layer: int, max_window_layers: int) -> bool:
        """Returns which layers have the window, as transformers has it where none are listed."""
        return layer >= max_window_layers

    def write_hf(self) -> dict[str, Any]:
        """Returns the fields that ``read_hf`` reads."""
        return super().write_hf() | {
            "use_sliding_window": self.window is not None,
            "sliding_window": self.window,
            "layer_types": list(self.layer_types or (FULL,) * self.n_layers),
        }


@dataclasses.dataclass(frozen=True)
class Qwen3(Qwen2):
    """Qwen2 with norms on queries and keys, and biases on all or none of the projections.

    Attributes:
      attention_bias: biases on the four attention projections.
    """

    head_dim: int | None = 128
    attention_bias: bool = False

    hf_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    FIELDS = {
        **Qwen2.FIELDS,
        "head_dim": ("head_dim", 128),
        "attention_bias": ("attention_bias", False),
    }

    def attention(self) -> AttentionConfig:
        """LLaMA's, with a norm on each head's queries and keys."""
        bias, qk_norm = self.attention_bias, QKNormConfig(self.norm(), "head")
        return changed(super().attention(), qkv_bias=bias, out_bias=bias, qk_norm=qk_norm)

    def attention_entries(self, hf: str, ours: str) -> list[Entry]:
        """Returns the entries, with those norms."""
        return [
            *super().attention_entries(hf, ours),
            *norm(f"{hf}q_norm", f"{ours}query_norm.norm", False, "H"),
            *norm(f"{hf}k_norm", f"{ours}key_norm.norm", False, "H"),
        ]
