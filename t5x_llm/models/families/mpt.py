"""MPT (MosaicML 2023), as transformers computes it: ALiBi, no biases, clipped projections."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.families.gpt_like import GptLike
from t5x_llm.models.family import REQUIRED, changed, dense, fused_qkv, norm
from t5x_llm.models.hf_config import check_hf_config
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.positions import AlibiConfig


@dataclasses.dataclass(frozen=True)
class MPT(GptLike):
    """No biases; fresh kernels that write to the residual stream are scaled by 1/sqrt(2 L).

    Attributes:
      qkv_clip: queries, keys and values are clipped to +- this, or None.
      softmax_scale: factor on attention logits; None means 1/sqrt(D / N).
      embed_gradient: share of the gradient that reaches the embedding table by way of the input.
    """

    tied: bool = True
    activation: str = "gelu"
    qkv_clip: float | None = None
    softmax_scale: float | None = None
    embed_gradient: float = 1.0

    hf_type = "mpt"
    architecture = "MptForCausalLM"
    FIELDS: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("d_model", REQUIRED),
        "n_layers": ("n_layers", REQUIRED),
        "n_heads": ("n_heads", REQUIRED),
        "max_length": ("max_seq_len", 2048),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "tied": ("tie_word_embeddings", True),
        "init_std": ("initializer_range", 0.02),
        "embed_gradient": ("embedding_fraction", 1.0),
    }
    ACTIVATION = None
    ALIASES = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
    }
    WRITTEN: ClassVar[Mapping[str, Any]] = {"expansion_ratio": 4, "no_bias": True}
    FIXED: ClassVar[Mapping[str, Any]] = {
        "norm_type": "low_precision_layernorm",  # LayerNorm, run in bfloat16
        "logit_scale": None,
        "ffn_config": {"ffn_type": "mptmlp"},
        "fc_type": "torch",
    }
    IGNORED = frozenset(
        {"init_config", "verbose"} | {"learned_pos_emb"}  # only where ALiBi is off
    )
    READ = frozenset({"attn_config"})

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The inner config."""
        attention = config.get("attn_config") or {}
        fixed = {"alibi": True, "alibi_bias_max": 8, "attn_type": "multihead_attention"}
        fixed |= {"prefix_lm": False, "qk_ln": False, "attn_uses_sequence_id": False}
        fixed |= {"rope": False, "qk_gn": False, "sliding_window_size": -1}
        known = {"clip_qkv", "softmax_scale", "model_type", "tie_word_embeddings"}
        known |= {"rope_theta", "rope_impl", "rope_dail_config", "rope_hf_config"}  # of "rope"
        check_hf_config(attention, known=known, fixed=fixed, prefix="attn_config.")
        return {
            "qkv_clip": attention.get("clip_qkv"),
            "softmax_scale": attention.get("softmax_scale"),
        }

    def write_hf(self) -> dict[str, Any]:
        """Returns the fields that ``read_hf`` reads."""
        inner = {"clip_qkv": self.qkv_clip, "softmax_scale": self.softmax_scale}
        return {"attn_config": {"alibi": True, **inner}}

    def norm(self) -> NormConfig:
        """LayerNorm without bias."""
        return changed(super().norm(), bias=False)

    def attention(self) -> AttentionConfig:
        """ALiBi, no biases."""
        return changed(
            super().attention(),
            qkv_bias=False,
            out_bias=False,
            scale=self.softmax_scale,
            alibi=AlibiConfig(1.0, 8.0, rounded=False),
            qkv_clip=self.qkv_clip,
        )

    def feed_forward(self) -> MlpConfig:
        """Returns the layer without biases."""
        return changed(super().feed_forward(), bias=False)

    def decoder(self) -> DecoderConfig:
        """Returns the decoder with its initialisation."""
        scale = 1 / math.sqrt(2 * self.n_layers)
        init = InitConfig(self.init_std, self.init_std, scale, 1.0)
        return changed(super().decoder(), init=init, embed_gradient=self.embed_gradient)

    def weight_map(self) -> list[Entry]:
        """HF tensor names and layouts against ours."""
        layer, ours = "transformer.blocks.{layer}.", "group_0.block_0."
        heads, head_dim = (self.n_heads, self.n_heads), self.d_model // self.n_heads
        return [
            Entry("transformer.wte.weight", "embed.table", "V D", "V D"),
            *norm("transformer.norm_f", "final_norm", bias=False),
            *norm(f"{layer}norm_1", f"{ours}attention_norm", bias=False),
            *norm(f"{layer}norm_2", f"{ours}mlp_norm", bias=False),
            *fused_qkv(f"{layer}attn.Wqkv", f"{ours}attention", heads, head_dim),
            *dense(f"{layer}attn.out_proj", f"{ours}attention.out", "D (N H)", "N H D"),
            *dense(f"{layer}ffn.up_proj", f"{ours}mlp.up", "O I", "I O"),
            *dense(f"{layer}ffn.down_proj", f"{ours}mlp.down", "O I", "I O"),
            *([] if self.tied else [Entry("lm_head.weight", "head.kernel", "V D", "D V")]),
        ]
