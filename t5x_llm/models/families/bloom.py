"""BLOOM (arXiv 2211.05100)."""

from __future__ import annotations

import dataclasses

from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.families.gpt_like import GptLike
from t5x_llm.models.family import REQUIRED, changed
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.block import BlockConfig
from t5x_llm.nn.positions import AlibiConfig


@dataclasses.dataclass(frozen=True)
class Bloom(GptLike):
    """GPT-2 with ALiBi and a norm after the embedding.

    Attributes:
      skip_normed: what is added to a layer's output is its normalised input.
    """

    skip_normed: bool = False

    hf_type = "bloom"
    architecture = "BloomForCausalLM"
    ACTIVATION = None
    ALIASES = {
        "n_embed": "hidden_size",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
    }
    FIELDS = {
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("hidden_size", REQUIRED),
        "n_layers": ("n_layer", REQUIRED),
        "n_heads": ("n_head", REQUIRED),
        "max_length": ("seq_length", 2048),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "tied": ("tie_word_embeddings", True),
        "init_std": ("initializer_range", 0.02),
        "skip_normed": ("apply_residual_connection_post_layernorm", False),
    }
    FIXED = {"n_inner": None}
    # How training was split and fused; the same arithmetic.
    IGNORED = frozenset(
        {"slow_but_exact", "bias_dropout_fusion", "masked_softmax_fusion"}
        | {"offset_alibi", "skip_bias_add", "skip_bias_add_qkv"}
    )
    READ = frozenset()
    NAMES = {
        "embed": "transformer.word_embeddings",
        "embed_norm": "transformer.word_embeddings_layernorm",
        "final_norm": "transformer.ln_f",
        "attention_norm": "transformer.h.{layer}.input_layernorm",
        "mlp_norm": "transformer.h.{layer}.post_attention_layernorm",
        "attention.qkv": "transformer.h.{layer}.self_attention.query_key_value",
        "attention.out": "transformer.h.{layer}.self_attention.dense",
        "mlp.up": "transformer.h.{layer}.mlp.dense_h_to_4h",
        "mlp.down": "transformer.h.{layer}.mlp.dense_4h_to_h",
        "head": "lm_head",
    }

    def attention(self) -> AttentionConfig:
        """Returns the attention with ALiBi."""
        return changed(super().attention(), alibi=AlibiConfig(1.0, 8.0, rounded=False))

    def block(self) -> BlockConfig:
        """x + f(norm(x)), or norm(x) + f(norm(x))."""
        block = super().block()
        return changed(block, residual=changed(block.residual, skip_normed=self.skip_normed))

    def decoder(self) -> DecoderConfig:
        """Returns the decoder with a norm after the embedding."""
        return changed(super().decoder(), embed_norm=self.norm())
