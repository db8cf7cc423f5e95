"""GPT-J (Wang and Komatsuzaki 2021, mesh-transformer-jax)."""

from __future__ import annotations

import dataclasses

from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.families.gpt2 import ALIASES
from t5x_llm.models.families.gpt_like import GptLike
from t5x_llm.models.family import REQUIRED, changed
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.block import BlockConfig
from t5x_llm.nn.positions import RotaryConfig


@dataclasses.dataclass(frozen=True)
class GPTJ(GptLike):
    """Attention and feed-forward layer side by side after one norm; part of each head is rotated.

    Attributes:
      rotary_dim: channels that are rotated, by neighbours.
    """

    tied: bool = False
    rotary_dim: int = 64

    hf_type = "gptj"
    architecture = "GPTJForCausalLM"
    ALIASES = ALIASES
    FIELDS = {
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("n_embd", REQUIRED),
        "n_layers": ("n_layer", REQUIRED),
        "n_heads": ("n_head", REQUIRED),
        "d_ff": ("n_inner", None),
        "max_length": ("n_positions", 2048),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "tied": ("tie_word_embeddings", False),
        "init_std": ("initializer_range", 0.02),
        "rotary_dim": ("rotary_dim", 64),
    }
    FIXED = {"rotary": True, "scale_attn_weights": True}
    NAMES = {
        "embed": "transformer.wte",
        "final_norm": "transformer.ln_f",
        "attention_norm": "transformer.h.{layer}.ln_1",
        "attention.query": "transformer.h.{layer}.attn.q_proj",
        "attention.key": "transformer.h.{layer}.attn.k_proj",
        "attention.value": "transformer.h.{layer}.attn.v_proj",
        "attention.out": "transformer.h.{layer}.attn.out_proj",
        "mlp.up": "transformer.h.{layer}.mlp.fc_in",
        "mlp.down": "transformer.h.{layer}.mlp.fc_out",
        "head": "lm_head",
    }

    def attention(self) -> AttentionConfig:
        """Rotated, without biases."""
        rotary = RotaryConfig(10000.0, self.rotary_dim, True, None, two_d=False)
        return changed(super().attention(), rotary=rotary, qkv_bias=False, out_bias=False)

    def block(self) -> BlockConfig:
        """x + attention(norm(x)) + mlp(norm(x))."""
        return changed(super().block(), parallel="one_norm")

    def decoder(self) -> DecoderConfig:
        """Returns the decoder with a bias on the logits."""
        return changed(super().decoder(), head_bias=True)
