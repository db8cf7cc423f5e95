"""Grok-1 (xAI 2024, released code), with the names of its Hugging Face port."""

from __future__ import annotations

import dataclasses

from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.families.llama import LlamaLike
from t5x_llm.models.family import changed
from t5x_llm.models.moe import expert_entries, experts
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.block import BlockConfig, GroupConfig, residual
from t5x_llm.nn.layer import LayerConfig


@dataclasses.dataclass(frozen=True)
class Grok1(LlamaLike):
    """Sandwich norms, capped attention, eight GeGLU experts of which each token uses two.

    Attributes:
      n_experts: E.
      top_k: experts a token goes to; their weights are not made to sum to one.
      embed_scale: factor on embeddings.
      logit_scale: factor on logits.
      attention_scale: factor on attention logits.
      attention_softcap: their cap.
      balance_weight: of the load-balance loss.
    """

    n_experts: int = 8
    top_k: int = 2
    embed_scale: float = 78.38367176906169
    logit_scale: float = 0.5773502691896257
    attention_scale: float = 0.08838834764831845
    attention_softcap: float = 30.0
    balance_weight: float = 0.001

    hf_type = "grok-1"
    architecture = "Grok1ModelForCausalLM"
    FIELDS = {
        **{k: v for k, v in LlamaLike.FIELDS.items() if k != "head_dim"},
        "norm_eps": ("rms_norm_eps", 1e-5),
        "n_experts": ("num_experts", 8),
        "top_k": ("num_experts_per_tok", 2),
        "embed_scale": ("embedding_multiplier_scale", 1.0),
        "logit_scale": ("output_multiplier_scale", 1.0),
        "attention_scale": ("attn_output_multiplier", 1.0),
        "attention_softcap": ("max_attn_value", 1.0),
        "balance_weight": ("router_aux_loss_coef", 0.001),
    }
    WRITTEN = {}
    READ = LlamaLike.READ | {"head_dim"}

    def attention(self) -> AttentionConfig:
        """Scaled and capped."""
        return changed(
            super().attention(), scale=self.attention_scale, softcap=self.attention_softcap
        )

    def feed_forward(self) -> LayerConfig:
        """GeGLU experts; their weights are the softmax over all experts."""
        sizes = (self.n_experts, self.top_k, self.d_ff, self.balance_weight)
        return experts(*sizes, activation="gelu_tanh", normalise=None)

    def groups(self) -> tuple[GroupConfig, ...]:
        """A norm before and after each layer."""
        joined = residual(self.norm(), out=self.norm())
        block = BlockConfig(self.attention(), self.feed_forward(), joined, parallel="no")
        return (GroupConfig((block,), self.n_layers),)

    def decoder(self) -> DecoderConfig:
        """Returns the decoder with scaled embeddings and logits."""
        decoder = super().decoder()
        return changed(decoder, embed_scale=self.embed_scale, logit_scale=self.logit_scale)

    def weight_map(self) -> list[Entry]:
        """LLaMA's under other names."""
        renamed = {"self_attn.": "attn.", "model.norm.weight": "model.norm.scale"}
        entries = super().weight_map()
        for theirs, own in renamed.items():
            entries = [changed(e, hf=e.hf.replace(theirs, own)) for e in entries]
        return entries

    def norm_entries(self, hf: str, ours: str) -> list[Entry]:
        """Four norms a layer."""
        names = {
            "pre_attn_norm": "attention_norm",
            "post_attn_norm": "attention_out_norm",
            "pre_moe_norm": "mlp_norm",
            "post_moe_norm": "mlp_out_norm",
        }
        return [Entry(f"{hf}{a}.scale", f"{ours}{b}.scale", "D", "D") for a, b in names.items()]

    def feed_forward_entries(self, hf: str, ours: str) -> list[Entry]:
        """``linear`` is the gate, ``linear_v`` the other half, ``linear_1`` the way down."""
        names = ("linear", "linear_v", "linear_1")
        return expert_entries(hf.replace("mlp.", "moe_block."), ours, names)
