"""GPT-NeoX and Pythia (arXiv 2204.06745, 2304.01373)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_llm.models.families.gpt_like import GptLike
from t5x_llm.models.family import REQUIRED, changed
from t5x_llm.models.hf_config import given
from t5x_llm.models.rope import ROPE_FIELDS, check_rope, read_rope, write_rope
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.block import BlockConfig
from t5x_llm.nn.positions import RotaryConfig
from t5x_llm.nn.rotary_scaling import AnyRotaryScaling


@dataclasses.dataclass(frozen=True)
class GPTNeoX(GptLike):
    """Attention and feed-forward layer side by side, each after its norm; partial rotation.

    Attributes:
      parallel: side by side; False is one after the other.
      rope_theta: rotary base.
      rope_scaling: stretch of the rotary frequencies, or None.
      rotary_fraction: share of each head that is rotated.
      attention_bias: biases on the four attention projections.
    """

    tied: bool = False
    activation: str = "gelu"
    parallel: bool = True
    rope_theta: float = 10000.0
    rope_scaling: AnyRotaryScaling | None = None
    rotary_fraction: float = 0.25
    attention_bias: bool = True

    hf_type = "gpt_neox"
    architecture = "GPTNeoXForCausalLM"
    ACTIVATION = ("hidden_act", "gelu")
    FIELDS = {
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("hidden_size", REQUIRED),
        "n_layers": ("num_hidden_layers", REQUIRED),
        "n_heads": ("num_attention_heads", REQUIRED),
        "d_ff": ("intermediate_size", REQUIRED),
        "max_length": ("max_position_embeddings", 2048),
        "norm_eps": ("layer_norm_eps", 1e-5),
        "tied": ("tie_word_embeddings", False),
        "init_std": ("initializer_range", 0.02),
        "parallel": ("use_parallel_residual", True),
        "attention_bias": ("attention_bias", True),
    }
    READ = ROPE_FIELDS | {"hidden_act", "rotary_pct", "rotary_emb_base", "partial_rotary_factor"}
    NAMES = {
        "embed": "gpt_neox.embed_in",
        "final_norm": "gpt_neox.final_layer_norm",
        "attention_norm": "gpt_neox.layers.{layer}.input_layernorm",
        "mlp_norm": "gpt_neox.layers.{layer}.post_attention_layernorm",
        "attention.qkv": "gpt_neox.layers.{layer}.attention.query_key_value",
        "attention.out": "gpt_neox.layers.{layer}.attention.dense",
        "mlp.up": "gpt_neox.layers.{layer}.mlp.dense_h_to_4h",
        "mlp.down": "gpt_neox.layers.{layer}.mlp.dense_4h_to_h",
        "head": "embed_out",
    }

    def __post_init__(self) -> None:
        check_rope(self, self.rope_scaling)
        super().__post_init__()

    def attention(self) -> AttentionConfig:
        """Rotated in part."""
        attention, bias = super().attention(), self.attention_bias
        dim = int(attention.head_dim * self.rotary_fraction)
        rotary = RotaryConfig(self.rope_theta, dim, False, self.rope_scaling, two_d=False)
        return changed(attention, rotary=rotary, qkv_bias=bias, out_bias=bias)

    def block(self) -> BlockConfig:
        """x + attention(norm(x)) + mlp(other_norm(x)), or one after the other."""
        return changed(super().block(), parallel="two_norms" if self.parallel else "no")

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The rotary settings."""
        base = given(config, "rotary_emb_base", cls.rope_theta)
        length = given(config, "max_position_embeddings", 2048)
        theta, scaling, settings = read_rope(config, base, length)
        fraction = given(config, "rotary_pct", cls.rotary_fraction)
        fraction = given(config, "partial_rotary_factor", fraction)
        return super().read_hf(config) | {
            "rope_theta": theta,
            "rope_scaling": scaling,
            "rotary_fraction": settings.get("partial_rotary_factor", fraction),
        }

    def write_hf(self) -> dict[str, Any]:
        """The rotary settings by the old names and the new."""
        theta, fraction = self.rope_theta, self.rotary_fraction
        rope = write_rope(theta, self.rope_scaling, partial_rotary_factor=fraction)
        old = {"rotary_emb_base": theta, "rotary_pct": fraction}
        return super().write_hf() | rope | old
