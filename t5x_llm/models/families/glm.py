"""GLM: GLM-4 as transformers has it, ChatGLM 1 to 3 and GLM-130B as their repositories have them.

arXiv 2103.10360, 2210.02414, 2406.12793.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from t5x_llm.models.families.llama import LlamaLike
from t5x_llm.models.family import REQUIRED, changed, dense, grouped_qkv, norm
from t5x_llm.models.hf_config import given
from t5x_llm.models.rope import write_rope
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.block import BlockConfig, GroupConfig, residual
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.positions import RotaryConfig


@dataclasses.dataclass(frozen=True)
class Glm(LlamaLike):
    """LLaMA with half of each head rotated, by neighbours, and biases on queries, keys and values.

    Attributes:
      qkv_bias: those biases.
      rotary_fraction: share of each head that is rotated.
    """

    n_kv_heads: int | None = 2
    head_dim: int | None = 128
    norm_eps: float = 1.5625e-07
    qkv_bias: bool = True
    rotary_fraction: float = 0.5
    max_length: int = 131072

    hf_type = "glm"
    architecture = "GlmForCausalLM"
    FIELDS = {
        **LlamaLike.FIELDS,
        "n_kv_heads": ("num_key_value_heads", 2),
        "head_dim": ("head_dim", 128),
        "norm_eps": ("rms_norm_eps", 1.5625e-07),
        "qkv_bias": ("attention_bias", True),
        "max_length": ("max_position_embeddings", 131072),
    }
    READ = LlamaLike.READ | {"partial_rotary_factor"}

    def rotary(self) -> RotaryConfig:
        """The rotation of the first channels, by neighbours."""
        dim = int(self.head_size * self.rotary_fraction)
        return RotaryConfig(self.rope_theta, dim, True, self.rope_scaling, two_d=False)

    def attention(self) -> AttentionConfig:
        """Returns the attention with its biases."""
        return changed(super().attention(), qkv_bias=self.qkv_bias)

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The share of each head that is rotated, besides the rotary settings."""
        default = given(config, "partial_rotary_factor", cls.rotary_fraction)
        fraction = cls.read_rotary(config)[2].get("partial_rotary_factor", default)
        return super().read_hf(config) | {"rotary_fraction": fraction}

    def write_hf(self) -> dict[str, Any]:
        """Returns the fields that ``read_hf`` reads."""
        fraction = self.rotary_fraction
        rope = write_rope(self.rope_theta, self.rope_scaling, partial_rotary_factor=fraction)
        return super().write_hf() | rope | {"partial_rotary_factor": fraction}

    def feed_forward_entries(self, hf: str, ours: str) -> list[Entry]:
        """Gate and up in one tensor."""
        entries = dense(f"{hf}down_proj", f"{ours}down", "O I", "I O")
        for i, part in enumerate(("gate", "up")):
            entries += dense(f"{hf}gate_up_proj", ours + part, "(P O) I", "I O", part=(i, 2))
        return entries


# Names of ChatGLM for those of GLM-4.
_NAMES = {
    "model.embed_tokens": "transformer.embedding.word_embeddings",
    "model.norm": "transformer.encoder.final_layernorm",
    "lm_head": "transformer.output_layer",
    "model.layers": "transformer.encoder.layers",
    "self_attn.o_proj": "self_attention.dense",
    "mlp.gate_up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}


@dataclasses.dataclass(frozen=True)
class ChatGLM(Glm):
    """ChatGLM 2 and 3: GLM-4's arithmetic, one tensor for queries, keys and values."""

    norm_eps: float = 1e-5
    max_length: int = 32768

    hf_type = "chatglm"
    architecture = "ChatGLMModel"
    FIELDS = {
        "vocab_size": ("padded_vocab_size", REQUIRED),
        "d_model": ("hidden_size", REQUIRED),
        "n_layers": ("num_layers", REQUIRED),
        "n_heads": ("num_attention_heads", REQUIRED),
        "d_ff": ("ffn_hidden_size", REQUIRED),
        "head_dim": ("kv_channels", 128),
        "norm_eps": ("layernorm_epsilon", 1e-5),
        "qkv_bias": ("add_qkv_bias", False),
        "max_length": ("seq_length", 2048),
        "tied": ("tie_word_embeddings", False),
    }
    WRITTEN = {"rmsnorm": True, "add_bias_linear": False, "post_layer_norm": True}
    FIXED = {
        "apply_residual_connection_post_layernorm": False,
        "original_rope": True,
        "pre_seq_len": None,
        "quantization_bit": 0,
    }
    IGNORED = frozenset(
        {"bias_dropout_fusion", "fp32_residual_connection", "apply_query_key_layer_scaling"}
        | {"prefix_projection", "vocab_size", "interleaved_qkv"}
    )
    READ = frozenset({"multi_query_attention", "multi_query_group_num", "rope_ratio"})
    COPIES = {"num_hidden_layers": "n_layers"}

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> Any:
        """ChatGLM 1 has the same model_type and is told by its position encoding."""
        if cls is ChatGLM and "position_encoding_2d" in config:
            return ChatGLM1.from_hf_config(config)
        return super().from_hf_config(config)

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Key/value heads, and the rotary base as a ratio to 10,000."""
        grouped = config.get("multi_query_attention", False)
        heads = given(config, "multi_query_group_num", 1)
        return {
            "n_kv_heads": heads if grouped else config["num_attention_heads"],
            "rope_theta": 10000.0 * given(config, "rope_ratio", 1),
        }

    def write_hf(self) -> dict[str, Any]:
        """Returns the fields that ``read_hf`` reads."""
        return {
            "multi_query_attention": True,
            "multi_query_group_num": self.kv_heads,
            "rope_ratio": self.rope_theta / 10000.0,
        }

    def weight_map(self) -> list[Entry]:
        """GLM-4's under other names."""
        entries = super().weight_map()
        for theirs, own in _NAMES.items():
            entries = [changed(e, hf=e.hf.replace(f"{theirs}.", f"{own}.")) for e in entries]
        return entries

    def attention_entries(self, hf: str, ours: str) -> list[Entry]:
        """All queries, then all keys, then all values."""
        n, k = self.n_heads, self.kv_heads
        entries = [e for e in super().attention_entries(hf, ours) if "o_proj" in e.hf]
        fused = hf.replace("self_attn.", "self_attention.query_key_value")
        for part, first, span in (("query", 0, n), ("key", n, k), ("value", n + k, k)):
            heads = "P" if span > 1 else "1"
            bias = ("(P H)", f"{heads} H") if self.qkv_bias else None
            more = dict(part=(first, n + 2 * k), span=span, sizes=(("H", self.head_size),))
            entries += dense(fused, ours + part, "(P H) D", f"D {heads} H", bias, **more)
        return entries


@dataclasses.dataclass(frozen=True)
class ChatGLM1(LlamaLike):
    """ChatGLM-6B: DeepNorm over normalised inputs, 2-D positions, a prefix all tokens may see.

    Pass ``prefix`` and ``block_positions`` to ``Model.apply`` as the model card says: positions
    stop at the mask, block positions count from there.
    """

    norm_eps: float = 1e-5

    hf_type = "chatglm_6b"
    architecture = "ChatGLMModel"
    FIELDS = {
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("hidden_size", REQUIRED),
        "n_layers": ("num_layers", REQUIRED),
        "n_heads": ("num_attention_heads", REQUIRED),
        "d_ff": ("inner_hidden_size", REQUIRED),
        "norm_eps": ("layernorm_epsilon", 1e-5),
        "max_length": ("max_sequence_length", 2048),
    }
    WRITTEN = {"position_encoding_2d": True, "model_type": "chatglm"}
    FIXED = {"pre_seq_len": None, "prefix_projection": False, "quantization_bit": 0}
    IGNORED = frozenset({"gmask_token_id"})
    READ = frozenset()

    def norm(self) -> NormConfig:
        """LayerNorm."""
        return NormConfig("layer", self.norm_eps, bias=True, scale="ones")

    def rotary(self) -> RotaryConfig:
        """The rotation in two dimensions."""
        return RotaryConfig(self.rope_theta, self.head_size, False, None, two_d=True)

    def attention(self) -> AttentionConfig:
        """Returns the attention with biases."""
        return changed(super().attention(), qkv_bias=True, out_bias=True)

    def feed_forward(self) -> MlpConfig:
        """GELU."""
        return MlpConfig(self.d_ff, "gelu_tanh", gated=False, bias=True)

    def groups(self) -> tuple[GroupConfig, ...]:
        """alpha * norm(x) + f(norm(x)) with alpha = sqrt(2 L)."""
        alpha = math.sqrt(2 * self.n_layers)
        joined = residual(self.norm(), skip_scale=alpha, skip_normed=True)
        block = BlockConfig(self.attention(), self.feed_forward(), joined, parallel="no")
        return (GroupConfig((block,), self.n_layers),)

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def write_hf(self) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def weight_map(self) -> list[Entry]:
        """HF tensor names and layouts against ours."""
        layer, ours = "transformer.layers.{layer}.", "group_{group}.block_{block}."
        attention = f"{layer}attention.", f"{ours}attention."
        entries = [
            Entry("transformer.word_embeddings.weight", "embed.table", "V D", "V D"),
            *norm("transformer.final_layernorm", "final_norm", bias=True),
            *norm(f"{layer}input_layernorm", f"{ours}attention_norm", bias=True),
            *norm(f"{layer}post_attention_layernorm", f"{ours}mlp_norm", bias=True),
            *dense(f"{attention[0]}dense", f"{attention[1]}out", "D (N H)", "N H D", "D"),
            *self.feed_forward_entries(f"{layer}mlp.", f"{ours}mlp."),
            *([] if self.tied else [Entry("lm_head.weight", "head.kernel", "V D", "D V")]),
        ]
        fused, heads = f"{attention[0]}query_key_value", (self.n_heads, self.n_heads)
        return entries + grouped_qkv(fused, f"{ours}attention", heads)

    def feed_forward_entries(self, hf: str, ours: str) -> list[Entry]:
        """Two linear layers."""
        return [
            *dense(f"{hf}dense_h_to_4h", f"{ours}up", "O I", "I O", "O"),
            *dense(f"{hf}dense_4h_to_h", f"{ours}down", "O I", "I O", "O"),
        ]
