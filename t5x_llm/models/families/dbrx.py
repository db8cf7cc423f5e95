"""DBRX (Databricks 2024): sixteen fine-grained experts, grouped queries, clipped projections."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_llm.models.families.llama import LlamaLike
from t5x_llm.models.family import changed, dense, norm
from t5x_llm.models.hf_config import check_copies, check_hf_config, given
from t5x_llm.models.moe import experts
from t5x_llm.models.rope import write_rope
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.layer import LayerConfig
from t5x_llm.nn.norm import NormConfig

# Fields that say something in the whole config alone, and stand in its parts too.
_OUTER = ("model_type", "tie_word_embeddings")


@dataclasses.dataclass(frozen=True)
class Dbrx(LlamaLike):
    """LayerNorm without biases and experts chosen by a p-norm.

    Attributes:
      n_experts: E.
      top_k: experts a token goes to.
      qkv_clip: queries, keys and values are clipped to +- this, or None.
      normalise: p of the norm that the chosen weights are divided by, or None.
      balance_weight: of the load-balance loss.
    """

    n_kv_heads: int | None = 8
    n_experts: int = 16
    top_k: int = 4
    qkv_clip: float | None = 8.0
    normalise: float | None = 1.0
    balance_weight: float = 0.01

    hf_type = "dbrx"
    architecture = "DbrxForCausalLM"
    FIELDS = {
        "vocab_size": ("vocab_size", 32000),
        "d_model": ("d_model", 2048),
        "n_layers": ("n_layers", 24),
        "n_heads": ("n_heads", 16),
        "tied": ("tie_word_embeddings", False),
        "init_std": ("initializer_range", 0.02),
        "max_length": ("max_seq_len", 2048),
    }
    WRITTEN = {"resid_pdrop": 0.0, "emb_pdrop": 0.0}
    READ = LlamaLike.READ | {"attn_config", "ffn_config"}
    COPIES = {"num_key_value_heads": "kv_heads"}

    def norm(self) -> NormConfig:
        """LayerNorm without bias."""
        return NormConfig("layer", self.norm_eps, bias=False, scale="ones")

    def attention(self) -> AttentionConfig:
        """Clipped."""
        return changed(super().attention(), qkv_clip=self.qkv_clip)

    def feed_forward(self) -> LayerConfig:
        """Experts."""
        sizes = (self.n_experts, self.top_k, self.d_ff, self.balance_weight)
        return experts(*sizes, normalise=self.normalise)

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The two inner configs."""
        attention, inner = config.get("attn_config") or {}, config.get("ffn_config") or {}
        check_hf_config(
            attention,
            known={"clip_qkv", "kv_n_heads", "rope_theta", *_OUTER},
            fixed={"attn_type": "default"},
            prefix="attn_config.",
        )
        check_hf_config(
            inner,
            known={"ffn_hidden_size", "moe_num_experts", "moe_top_k", "moe_loss_weight"}
            | {"moe_normalize_expert_weights", "hidden_size", "moe_jitter_eps", *_OUTER},
            fixed={"ffn_act_fn": {"name": "silu"}, "ffn_type": "dbrxmoe"}
            | {"uniform_expert_assignment": False},
            prefix="ffn_config.",
        )
        check_copies(inner, {"hidden_size": given(config, "d_model", 2048)}, "ffn_config.")
        theta = attention.get("rope_theta")
        rope = config if theta is None else {**config, "rope_theta": theta}
        return super().read_hf(rope) | {
            "n_kv_heads": given(attention, "kv_n_heads", 1),
            "qkv_clip": attention.get("clip_qkv"),
            "d_ff": given(inner, "ffn_hidden_size", 3584),
            "n_experts": given(inner, "moe_num_experts", 4),
            "top_k": given(inner, "moe_top_k", 1),
            "normalise": inner.get("moe_normalize_expert_weights", 1.0),
            "balance_weight": given(inner, "moe_loss_weight", 0.01),
        }

    def write_hf(self) -> dict[str, Any]:
        """Returns the fields that ``read_hf`` reads."""
        inner: dict[str, Any] = {"hidden_size": self.d_model, "ffn_hidden_size": self.d_ff}
        inner |= {"moe_num_experts": self.n_experts, "moe_top_k": self.top_k}
        inner |= {"moe_normalize_expert_weights": self.normalise, "ffn_act_fn": {"name": "silu"}}
        attention = {"clip_qkv": self.qkv_clip, "kv_n_heads": self.kv_heads}
        return write_rope(self.rope_theta, self.rope_scaling) | {
            "attn_config": attention | {"rope_theta": self.rope_theta},
            "ffn_config": inner | {"moe_loss_weight": self.balance_weight},
        }

    def weight_map(self) -> list[Entry]:
        """HF tensor names and layouts against ours; experts lie one after another."""
        layer, ours = "transformer.blocks.{layer}.", "group_{group}.block_{block}."
        n, k = self.n_heads, self.kv_heads
        norms = f"{layer}norm_attn_norm."
        entries = [
            Entry("transformer.wte.weight", "embed.table", "V D", "V D"),
            *norm("transformer.norm_f", "final_norm", False),
            *norm(f"{norms}norm_1", f"{ours}attention_norm", False),
            *norm(f"{norms}norm_2", f"{ours}mlp_norm", False),
            *dense(f"{norms}attn.out_proj", f"{ours}attention.out", "D (N H)", "N H D"),
            *([] if self.tied else [Entry("lm_head.weight", "head.kernel", "V D", "D V")]),
            Entry(f"{layer}ffn.router.layer.weight", f"{ours}mlp.router.kernel", "E D", "D E"),
        ]
        for part, first, span in (("query", 0, n), ("key", n, k), ("value", n + k, k)):
            axes = "D P H" if span > 1 else "D 1 H"
            more: dict[str, Any] = dict(
                part=(first, n + 2 * k), span=span, sizes=(("H", self.head_size),)
            )
            entries += dense(
                f"{norms}attn.Wqkv", f"{ours}attention.{part}", "(P H) D", axes, **more
            )
        for name, part, axes in (
            ("w1", "gate", "E D F"),
            ("v1", "up", "E D F"),
            ("w2", "down", "E F D"),
        ):
            tensor = f"{layer}ffn.experts.mlp.{name}", f"{ours}mlp.experts.{part}"
            entries.append(Entry(*tensor, "(E F) D", axes))
        return entries
