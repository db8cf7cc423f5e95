"""Phi 1, 1.5 and 2 (arXiv 2306.11644, 2309.05463), and Phi 3 (arXiv 2404.14219)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.families.llama import PartialLlama
from t5x_llm.models.family import changed, dense, fused_qkv, norm
from t5x_llm.models.hf_config import given
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig, QKNormConfig
from t5x_llm.nn.block import BlockConfig, GroupConfig, pre_norm
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.rotary_scaling import AnyRotaryScaling


@dataclasses.dataclass(frozen=True)
class Phi(PartialLlama):
    """Parallel layers behind one LayerNorm, GELU, biases everywhere, the head's included.

    Attributes:
      qk_norm: LayerNorms on the queries and keys of each head.
    """

    rotary_fraction: float = 0.5
    qk_norm: bool = False

    hf_type = "phi"
    architecture = "PhiForCausalLM"
    FIELDS = {
        **PartialLlama.FIELDS,
        "norm_eps": ("layer_norm_eps", 1e-5),
        "qk_norm": ("qk_layernorm", False),
    }
    WRITTEN = {"hidden_act": "gelu_new"}

    def norm(self) -> NormConfig:
        """LayerNorm."""
        return NormConfig("layer", self.norm_eps, bias=True, scale="ones")

    def attention(self) -> AttentionConfig:
        """Returns the attention with biases."""
        qk_norm = QKNormConfig(self.norm(), "head") if self.qk_norm else None
        return changed(super().attention(), qkv_bias=True, out_bias=True, qk_norm=qk_norm)

    def feed_forward(self) -> MlpConfig:
        """GELU."""
        return MlpConfig(self.d_ff, "gelu_tanh", gated=False, bias=True)

    def groups(self) -> tuple[GroupConfig, ...]:
        """x + attention(norm(x)) + mlp(norm(x))."""
        residual = pre_norm(self.norm())
        block = BlockConfig(self.attention(), self.feed_forward(), residual, parallel="one_norm")
        return (GroupConfig((block,), self.n_layers),)

    def decoder(self) -> DecoderConfig:
        """Returns the decoder with the head's bias."""
        return changed(super().decoder(), head_bias=True)

    def write_hf(self) -> dict[str, Any]:
        """No dropout."""
        return super().write_hf() | {"resid_pdrop": 0.0, "embd_pdrop": 0.0}

    def weight_map(self) -> list[Entry]:
        """LLaMA's, the final norm under another name, and the head's bias."""
        return [
            *(e for e in super().weight_map() if not e.hf.startswith("model.norm.")),
            *norm("model.final_layernorm", "final_norm", bias=True),
            Entry("lm_head.bias", "head_bias", "V", "V"),
        ]

    def norm_entries(self, hf: str, ours: str) -> list[Entry]:
        """The one before both layers."""
        return norm(f"{hf}input_layernorm", f"{ours}attention_norm", bias=True)

    def attention_entries(self, hf: str, ours: str) -> list[Entry]:
        """LLaMA's, the output under another name, and the norms of queries and keys."""
        entries = super().attention_entries(hf, ours)
        entries = [changed(e, hf=e.hf.replace(".o_proj.", ".dense.")) for e in entries]
        if self.qk_norm:
            entries += norm(f"{hf}q_layernorm", f"{ours}query_norm.norm", bias=True)
            entries += norm(f"{hf}k_layernorm", f"{ours}key_norm.norm", bias=True)
        return entries

    def feed_forward_entries(self, hf: str, ours: str) -> list[Entry]:
        """Two linear layers."""
        return [
            *dense(f"{hf}fc1", f"{ours}up", "O I", "I O", "O"),
            *dense(f"{hf}fc2", f"{ours}down", "O I", "I O", "O"),
        ]


# Older names of LongRoPE; Phi-3 knows no other scaling.
_LONG = {"su": "longrope", "yarn": "longrope"}


@dataclasses.dataclass(frozen=True)
class Phi3(PartialLlama):
    """LLaMA with fused tensors, a window, and LongRoPE.

    Attributes:
      window: tokens see so many of the last ones, or None for all.
    """

    window: int | None = None

    hf_type = "phi3"
    architecture = "Phi3ForCausalLM"
    FIELDS = {
        **PartialLlama.FIELDS,
        "norm_eps": ("rms_norm_eps", 1e-5),
        "window": ("sliding_window", None),
        "max_length": ("max_position_embeddings", 4096),
    }
    # Switches that Phi-4-mini writes out.
    FIXED = dict.fromkeys(("attention_bias", "mlp_bias", "lm_head_bias"), False)
    FIXED |= {"full_attn_mod": 1, "interpolate_factor": 1}

    def attention(self) -> AttentionConfig:
        """Returns the attention with its window."""
        return changed(super().attention(), window=self.window)

    @classmethod
    def read_rotary(
        cls, config: Mapping[str, Any], **more: Any
    ) -> tuple[float, AnyRotaryScaling | None, dict[str, Any]]:
        """LongRoPE under its older names; its pretrained length stands beside the table."""
        length = given(config, "original_max_position_embeddings", 4096)
        config = {**config, "original_max_position_embeddings": length}
        return super().read_rotary(config, old_kinds=_LONG)

    def write_hf(self) -> dict[str, Any]:
        """No dropout."""
        return super().write_hf() | {"resid_pdrop": 0.0, "embd_pdrop": 0.0}

    def attention_entries(self, hf: str, ours: str) -> list[Entry]:
        """All queries, then all keys, then all values."""
        heads = self.n_heads, self.kv_heads
        return [
            *fused_qkv(f"{hf}qkv_proj", ours.removesuffix("."), heads, self.head_size),
            *dense(f"{hf}o_proj", f"{ours}out", "D (N H)", "N H D"),
        ]

    def feed_forward_entries(self, hf: str, ours: str) -> list[Entry]:
        """Gate and up in one tensor."""
        entries = dense(f"{hf}down_proj", f"{ours}down", "O I", "I O")
        for i, part in enumerate(("gate", "up")):
            entries += dense(f"{hf}gate_up_proj", ours + part, "(P O) I", "I O", part=(i, 2))
        return entries
