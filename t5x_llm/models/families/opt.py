"""OPT (arXiv 2205.01068), and Galactica (2211.09085) as transformers has it."""

from __future__ import annotations

import dataclasses

from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.families.gpt_like import GptLike
from t5x_llm.models.family import REQUIRED, changed
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.block import BlockConfig, residual
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.norm import NormConfig

# Rows of the position table before the first token's; those were for padding.
_OFFSET = 2


@dataclasses.dataclass(frozen=True)
class OPT(GptLike):
    """GPT-2 with ReLU and two rows of positions that no token uses.

    Attributes:
      norm_first: norms before the layers; False puts them after the additions and leaves out the
        final one (350M).
      drop_final_norm: leave out the final norm in any case (checkpoints of before 2022-06).
      embed_dim: width of the embedding table, projected to D; None means D (350M: 512).
      bias: biases on all projections; Galactica has none.
      learned_norms: norms have scale and bias.
    """

    activation: str = "relu"
    norm_first: bool = True
    drop_final_norm: bool = False
    embed_dim: int | None = None
    bias: bool = True
    learned_norms: bool = True

    hf_type = "opt"
    architecture = "OPTForCausalLM"
    ACTIVATION = ("activation_function", "relu")
    FIELDS = {
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("hidden_size", REQUIRED),
        "n_layers": ("num_hidden_layers", REQUIRED),
        "n_heads": ("num_attention_heads", REQUIRED),
        "d_ff": ("ffn_dim", REQUIRED),
        "max_length": ("max_position_embeddings", 2048),
        "tied": ("tie_word_embeddings", True),
        "init_std": ("init_std", 0.02),
        "norm_first": ("do_layer_norm_before", True),
        "drop_final_norm": ("_remove_final_layer_norm", False),
        "embed_dim": ("word_embed_proj_dim", None),
        "bias": ("enable_bias", True),
        "learned_norms": ("layer_norm_elementwise_affine", True),
    }
    # What conversions from Metaseq left behind.
    FIXED = {"learned_embeddings": True, "scale_embeddings": False, "output_projection": True}
    NAMES = {
        "embed": "model.decoder.embed_tokens",
        "position_embed": "model.decoder.embed_positions",
        "embed_in": "model.decoder.project_in",
        "embed_out": "model.decoder.project_out",
        "final_norm": "model.decoder.final_layer_norm",
        "attention_norm": "model.decoder.layers.{layer}.self_attn_layer_norm",
        "attention_post_norm": "model.decoder.layers.{layer}.self_attn_layer_norm",
        "mlp_norm": "model.decoder.layers.{layer}.final_layer_norm",
        "mlp_post_norm": "model.decoder.layers.{layer}.final_layer_norm",
        "attention.query": "model.decoder.layers.{layer}.self_attn.q_proj",
        "attention.key": "model.decoder.layers.{layer}.self_attn.k_proj",
        "attention.value": "model.decoder.layers.{layer}.self_attn.v_proj",
        "attention.out": "model.decoder.layers.{layer}.self_attn.out_proj",
        "mlp.up": "model.decoder.layers.{layer}.fc1",
        "mlp.down": "model.decoder.layers.{layer}.fc2",
        "head": "lm_head",
    }

    def norm(self) -> NormConfig:
        """LayerNorm, learned or not."""
        learned = self.learned_norms
        return changed(super().norm(), bias=learned, scale="ones" if learned else "none")

    def attention(self) -> AttentionConfig:
        """Returns the attention with biases or without."""
        return changed(super().attention(), qkv_bias=self.bias, out_bias=self.bias)

    def feed_forward(self) -> MlpConfig:
        """Returns the layer with biases or without."""
        return changed(super().feed_forward(), bias=self.bias)

    def block(self) -> BlockConfig:
        """x + f(norm(x)), or norm(x + f(x))."""
        block = super().block()
        after = residual(None, post=self.norm())
        return block if self.norm_first else changed(block, residual=after)

    def decoder(self) -> DecoderConfig:
        """Returns the decoder with learned positions and a narrower embedding."""
        final = self.norm_first and not self.drop_final_norm
        return changed(
            super().decoder(),
            final_norm=self.norm() if final else None,
            learned_positions=self.max_length,
            position_offset=_OFFSET,
            embed_dim=None if self.embed_dim == self.d_model else self.embed_dim,
        )
