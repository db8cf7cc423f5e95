"""GPT-Neo (Black et al. 2021, doi 10.5281/zenodo.5297715)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.families.gpt_like import GptLike
from t5x_llm.models.family import REQUIRED, changed
from t5x_llm.models.layer_types import check_layer_types, grouped
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.block import BlockConfig, GroupConfig

GLOBAL, LOCAL = "global", "local"


@dataclasses.dataclass(frozen=True)
class GPTNeo(GptLike):
    """GPT-2 with a window in every other layer, logits that are not scaled, no biases on q, k, v.

    Attributes:
      window: tokens that a local layer sees, the own included.
      layer_types: 'global' or 'local' for each layer; () alternates, global first.
    """

    window: int = 256
    layer_types: tuple[str, ...] = ()

    hf_type = "gpt_neo"
    architecture = "GPTNeoForCausalLM"
    ALIASES = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
    FIELDS = {
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("hidden_size", REQUIRED),
        "n_layers": ("num_layers", REQUIRED),
        "n_heads": ("num_heads", REQUIRED),
        "d_ff": ("intermediate_size", None),
        "max_length": ("max_position_embeddings", 2048),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "tied": ("tie_word_embeddings", True),
        "init_std": ("initializer_range", 0.02),
        "window": ("window_size", 256),
    }
    READ = GptLike.READ | {"attention_types", "attention_layers"}
    NAMES = {
        "embed": "transformer.wte",
        "position_embed": "transformer.wpe",
        "final_norm": "transformer.ln_f",
        "attention_norm": "transformer.h.{layer}.ln_1",
        "mlp_norm": "transformer.h.{layer}.ln_2",
        "attention.query": "transformer.h.{layer}.attn.attention.q_proj",
        "attention.key": "transformer.h.{layer}.attn.attention.k_proj",
        "attention.value": "transformer.h.{layer}.attn.attention.v_proj",
        "attention.out": "transformer.h.{layer}.attn.attention.out_proj",
        "mlp.up": "transformer.h.{layer}.mlp.c_fc",
        "mlp.down": "transformer.h.{layer}.mlp.c_proj",
        "head": "lm_head",
    }

    def __post_init__(self) -> None:
        check_layer_types("GPTNeo", self.layer_types, (GLOBAL, LOCAL))
        if self.layer_types and len(self.layer_types) != self.n_layers:
            raise ConfigError(
                "GPTNeo.layer_types",
                self.layer_types,
                f"one for each of GPTNeo.n_layers = {self.n_layers} layers",
            )
        super().__post_init__()

    @property
    def types(self) -> tuple[str, ...]:
        """The kind of every layer."""
        alternating = tuple(LOCAL if i % 2 else GLOBAL for i in range(self.n_layers))
        return self.layer_types or alternating

    def attention(self) -> AttentionConfig:
        """Returns the attention of global layers."""
        return changed(super().attention(), qkv_bias=False, scale=1.0)

    def groups(self) -> tuple[GroupConfig, ...]:
        """Layers by their type."""

        def block(kind: str) -> BlockConfig:
            window = self.window if kind == LOCAL else None
            return changed(self.block(), mixer=changed(self.attention(), window=window))

        return grouped(self.types, block)

    def decoder(self) -> DecoderConfig:
        """Returns the decoder with learned positions."""
        return changed(super().decoder(), learned_positions=self.max_length)

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The layers' types: patterns with their numbers, or a list."""
        kinds, listed = config.get("attention_types"), config.get("attention_layers")
        if kinds is None:
            kinds = [[listed, 1]] if listed else [[[GLOBAL, LOCAL], 12]]
        types = [kind for pattern, times in kinds for kind in list(pattern) * times]
        if listed and list(listed) != types:
            raise ConfigError("config.json attention_layers", listed, f"attention_types' {types}")
        return super().read_hf(config) | {"layer_types": tuple(types)}

    def write_hf(self) -> dict[str, Any]:
        """Returns the fields that ``read_hf`` reads."""
        types, n = list(self.types), self.n_layers
        period = next(p for p in range(1, n + 1) if types[:p] * (n // p) == types)
        kinds = [[types[:period], n // period]]
        return super().write_hf() | {"attention_types": kinds, "attention_layers": types}
