"""LLaMA 1 and 2 (arXiv 2302.13971, 2307.09288) and every model of that shape."""

from __future__ import annotations

import dataclasses
from typing import Any

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.hf_config import check_hf_config
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.block import BlockConfig, GroupConfig
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.positions import RotaryConfig


@dataclasses.dataclass(frozen=True)
class Llama:
    """Pre-norm decoder: RMSNorm, rotary grouped-query attention, SwiGLU, no biases.

    Attributes:
      vocab_size: V.
      d_model: D.
      n_layers: L.
      n_heads: N.
      n_kv_heads: K; None means N.
      d_ff: F.
      head_dim: H; None means D / N.
      rope_theta: rotary base.
      norm_eps: RMSNorm epsilon.
      tied: the head is the embedding table.
      attention_bias: biases on the four attention projections.
      mlp_bias: biases in the feed-forward layer.
      init_std: standard deviation of fresh kernels and embeddings; None draws kernels from
        1/sqrt(fan in) and embeddings from N(0, 0.02^2).
      residual_scale: factor on fresh kernels that write to the residual stream.
      max_length: longest sequence the model is meant for; recorded in exports.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    n_kv_heads: int | None = None
    head_dim: int | None = None
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    init_std: float | None = 0.02
    residual_scale: float = 1.0
    max_length: int = 2048

    hf_type = "llama"

    def __post_init__(self) -> None:
        if self.head_dim is None and self.d_model % self.n_heads:
            raise ConfigError(
                "Llama.n_heads",
                self.n_heads,
                f"a divisor of Llama.d_model = {self.d_model}",
                "Change either, or give Llama.head_dim.",
            )
        self.decoder()

    @property
    def kv_heads(self) -> int:
        """K."""
        return self.n_kv_heads if self.n_kv_heads is not None else self.n_heads

    @property
    def head_size(self) -> int:
        """H."""
        return self.head_dim if self.head_dim is not None else self.d_model // self.n_heads

    def decoder(self) -> DecoderConfig:
        """The generic decoder this preset describes."""
        norm = NormConfig("rms", self.norm_eps, bias=False)
        attention = AttentionConfig(
            n_heads=self.n_heads,
            n_kv_heads=self.kv_heads,
            head_dim=self.head_size,
            rotary=RotaryConfig(self.rope_theta, self.head_size),
            qkv_bias=self.attention_bias,
            out_bias=self.attention_bias,
        )
        mlp = MlpConfig(self.d_ff, "silu", gated=True, bias=self.mlp_bias)
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            groups=(GroupConfig((BlockConfig(attention, mlp, norm),), self.n_layers),),
            final_norm=norm,
            learned_positions=None,
            tied=self.tied,
            init=InitConfig(self.init_std, self.init_std or 0.02, self.residual_scale),
        )

    def to_hf_config(self) -> dict[str, Any]:
        """config.json of transformers' LlamaForCausalLM."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": self.hf_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "intermediate_size": self.d_ff,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_length,
            "initializer_range": self.init_std or 0.02,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "mlp_bias": self.mlp_bias,
            "tie_word_embeddings": self.tied,
        }

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> Llama:
        """The preset of a transformers config.json.

        Raises:
          ConfigError: naming a field this family does not know or a value it cannot express.
        """
        check_hf_config(
            config,
            known={"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"}
            | {"num_attention_heads", "num_key_value_heads", "head_dim", "initializer_range"}
            | {"max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_parameters"}
            | {"attention_bias", "mlp_bias", "tie_word_embeddings"},
            fixed={"model_type": "llama", "hidden_act": "silu", "rope_scaling": None}
            | {"attention_dropout": 0.0, "pretraining_tp": 1},
        )
        rope = config.get("rope_parameters") or {}
        check_hf_config(
            rope,
            known={"rope_theta"},
            fixed={"rope_type": "default"},
            prefix="rope_parameters.",
        )
        return cls(
            vocab_size=config["vocab_size"],
            d_model=config["hidden_size"],
            n_layers=config["num_hidden_layers"],
            n_heads=config["num_attention_heads"],
            n_kv_heads=config.get("num_key_value_heads"),
            d_ff=config["intermediate_size"],
            head_dim=config.get("head_dim"),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
            norm_eps=config.get("rms_norm_eps", 1e-6),
            tied=config.get("tie_word_embeddings", False),
            attention_bias=config.get("attention_bias", False),
            mlp_bias=config.get("mlp_bias", False),
            init_std=config.get("initializer_range", 0.02),
            max_length=config.get("max_position_embeddings", 2048),
        )

    def weight_map(self) -> list[Entry]:
        """HF tensor names and layouts against ours."""
        layer, ours = "model.layers.{layer}.", "group_0.block_0."
        attention = {"q": ("query", "N"), "k": ("key", "K"), "v": ("value", "K")}
        entries = [
            Entry("model.embed_tokens.weight", "embed.table", "V D", "V D"),
            Entry("model.norm.weight", "final_norm.scale", "D", "D"),
            Entry(f"{layer}input_layernorm.weight", f"{ours}attention_norm.scale", "D", "D"),
            Entry(f"{layer}post_attention_layernorm.weight", f"{ours}mlp_norm.scale", "D", "D"),
            Entry(
                f"{layer}self_attn.o_proj.weight",
                f"{ours}attention.out.kernel",
                "D (N H)",
                "N H D",
            ),
        ]
        for name, (part, heads) in attention.items():
            hf, path = f"{layer}self_attn.{name}_proj.", f"{ours}attention.{part}."
            entries.append(Entry(hf + "weight", path + "kernel", f"({heads} H) D", f"D {heads} H"))
            if self.attention_bias:
                entries.append(Entry(hf + "bias", path + "bias", f"({heads} H)", f"{heads} H"))
        if self.attention_bias:
            hf = f"{layer}self_attn.o_proj.bias"
            entries.append(Entry(hf, f"{ours}attention.out.bias", "D", "D"))
        for part in ("gate", "up", "down"):
            hf, path = f"{layer}mlp.{part}_proj.", f"{ours}mlp.{part}."
            entries.append(Entry(hf + "weight", path + "kernel", "O I", "I O"))
            if self.mlp_bias:
                entries.append(Entry(hf + "bias", path + "bias", "O", "O"))
        if not self.tied:
            entries.append(Entry("lm_head.weight", "head.kernel", "V D", "D V"))
        return entries
