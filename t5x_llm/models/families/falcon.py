"""Falcon: RW (arXiv 2306.01116), 7B, 40B and 180B (2311.16867), and Falcon 2 (2407.14885)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_llm.core.errors import ConfigError, check_choice
from t5x_llm.models.families.gpt_like import GptLike
from t5x_llm.models.family import REQUIRED, changed
from t5x_llm.models.hf_config import given
from t5x_llm.models.rope import ROPE_FIELDS, check_rope, read_rope, write_rope
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.block import PARALLEL, BlockConfig
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.positions import AlibiConfig, RotaryConfig
from t5x_llm.nn.rotary_scaling import AnyRotaryScaling


@dataclasses.dataclass(frozen=True)
class Falcon(GptLike):
    """Parallel blocks, few key/value heads, rotation or ALiBi.

    One tensor has, for each key/value head, its queries, its key and its value. config.json tells
    one head, N heads, and (``new_decoder_architecture``) any number apart.

    Attributes:
      n_kv_heads: K; None means N.
      parallel: as of ``BlockConfig``; 'two_norms' in 40B and 180B, 'no' in RW.
      alibi: linear biases instead of rotation, rounded to bfloat16 as transformers does.
      bias: biases on all projections.
      rope_theta: rotary base.
      rope_scaling: stretch of the rotary frequencies, or None.
    """

    activation: str = "gelu"
    n_kv_heads: int | None = 1
    parallel: str = "one_norm"
    alibi: bool = False
    bias: bool = False
    rope_theta: float = 10000.0
    rope_scaling: AnyRotaryScaling | None = None

    hf_type = "falcon"
    architecture = "FalconForCausalLM"
    ACTIVATION = ("activation", "gelu")
    ALIASES = {"n_embed": "hidden_size"}
    FIELDS = {
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("hidden_size", REQUIRED),
        "n_layers": ("num_hidden_layers", REQUIRED),
        "n_heads": ("num_attention_heads", REQUIRED),
        "d_ff": ("ffn_hidden_size", None),
        "max_length": ("max_position_embeddings", 2048),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "tied": ("tie_word_embeddings", True),
        "init_std": ("initializer_range", 0.02),
        "alibi": ("alibi", False),
        "bias": ("bias", False),
    }
    FIXED = {"apply_residual_connection_post_layernorm": False}
    IGNORED = frozenset({"ff_factor"})  # where ffn_hidden_size says the same
    READ = ROPE_FIELDS | {"activation", "num_kv_heads", "multi_query", "parallel_attn"}
    READ |= {"new_decoder_architecture", "num_ln_in_parallel_attn"}
    NAMES = {
        "embed": "transformer.word_embeddings",
        "final_norm": "transformer.ln_f",
        "attention.qkv": "transformer.h.{layer}.self_attention.query_key_value",
        "attention.out": "transformer.h.{layer}.self_attention.dense",
        "mlp.up": "transformer.h.{layer}.mlp.dense_h_to_4h",
        "mlp.down": "transformer.h.{layer}.mlp.dense_4h_to_h",
        "head": "lm_head",
    }

    def __post_init__(self) -> None:
        check_choice("Falcon.parallel", self.parallel, PARALLEL)
        check_rope(self, self.rope_scaling)
        if self.parallel == "no" and self.kv_heads not in (1, self.n_heads):
            raise ConfigError(
                "Falcon.n_kv_heads", self.n_kv_heads, f"1 or n_heads = {self.n_heads} in sequence"
            )
        super().__post_init__()

    @property
    def kv_heads(self) -> int:
        """K."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    def attention(self) -> AttentionConfig:
        """Returns the attention with rotation, or ALiBi added to logits before they are scaled."""
        bias, base = self.bias, super().attention()
        base = changed(base, n_kv_heads=self.kv_heads, qkv_bias=bias, out_bias=bias)
        if self.alibi:
            return changed(base, alibi=AlibiConfig(base.head_dim**-0.5, 8.0, rounded=True))
        scaling = self.rope_scaling
        rotary = RotaryConfig(self.rope_theta, base.head_dim, False, scaling, two_d=False)
        return changed(base, rotary=rotary)

    def feed_forward(self) -> MlpConfig:
        """Returns the layer with biases or without."""
        return changed(super().feed_forward(), bias=self.bias)

    def block(self) -> BlockConfig:
        """Side by side or in sequence."""
        return changed(super().block(), parallel=self.parallel)

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Key/value heads, the kind of block, and the rotary settings."""
        heads, norms = config.get("num_kv_heads"), config.get("num_ln_in_parallel_attn")
        if config.get("new_decoder_architecture"):
            parallel = "one_norm" if norms == 1 else "two_norms"
        else:
            parallel = "one_norm" if config.get("parallel_attn", True) else "no"
            n = config["num_attention_heads"]
            if not config.get("multi_query", True) and heads not in (None, n):
                raise ConfigError("config.json num_kv_heads", heads, f"{n} without multi_query")
            heads = 1 if config.get("multi_query", True) else None
        known = (None, 1, 2) if config.get("new_decoder_architecture") else (None, 1)
        if norms not in known:
            raise ConfigError(
                "config.json num_ln_in_parallel_attn",
                norms,
                " or ".join(map(repr, known)),
                "Two norms need new_decoder_architecture.",
            )
        length = given(config, "max_position_embeddings", 2048)
        theta, scaling, _ = read_rope(config, cls.rope_theta, length)
        fields = {"n_kv_heads": heads, "parallel": parallel}
        return super().read_hf(config) | fields | {"rope_theta": theta, "rope_scaling": scaling}

    def write_hf(self) -> dict[str, Any]:
        """Returns the fields that ``read_hf`` reads."""
        old = self.parallel != "two_norms" and self.kv_heads in (1, self.n_heads)
        norms = 2 if self.parallel == "two_norms" else 1
        fields: dict[str, Any] = {
            "new_decoder_architecture": not old,
            "multi_query": self.kv_heads == 1,
            "parallel_attn": self.parallel != "no",
            "num_kv_heads": self.n_heads if old else self.kv_heads,
            "num_ln_in_parallel_attn": None if old else norms,
        }
        return super().write_hf() | fields | write_rope(self.rope_theta, self.rope_scaling)

    def weight_map(self) -> list[Entry]:
        """The norms' names go with the kind of block."""
        two = self.parallel == "two_norms"
        names = ("ln_attn", "ln_mlp") if two else ("input_layernorm", "post_attention_layernorm")
        entries = super().weight_map()
        for name, path in zip(names, ("attention_norm", "mlp_norm"), strict=True):
            entries += self.entries(f"transformer.h.{{layer}}.{name}", path)
        return entries
